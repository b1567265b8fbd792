from __future__ import annotations

import re

from data_pipeline.build import build
from data_pipeline.build_report import build_report
from data_pipeline.config import BuildConfig, TokenizerConfig
from tests.data_pipeline.conftest import make_texts, write_jsonl


def test_the_report_adds_up_and_shows_what_was_rejected(tmp_path):
    texts = [*make_texts(60), "a | b\n`c`", *make_texts(3)]  # one too short, three twice
    source = write_jsonl(tmp_path / "corpus.jsonl", texts)
    config = BuildConfig(
        sources=(str(source),),
        output=tmp_path / "out",
        tokenizer=TokenizerConfig(vocab_size=400),
        validation_fraction=0.2,
        test_fraction=0.2,
    )
    build(config, progress=False).close()
    report = build_report(tmp_path / "out")
    sources, rules, *_ = re.split(r"\n\n(?=\|)", report)
    assert re.search(r"`.*corpus\.jsonl` \| 64 \| 0\.\d \| 1 \| 3 \| 60 \|", sources)
    assert str(tmp_path.parent.parent) not in report  # folders of this machine are nobody's business
    assert r"| `too_short` | “a \| b 'c'…” | 1 | 0.0 |" in rules
    assert "Asked and never met: not_text." in report
    assert report.count("\n| documents |") == 1
    for line in report.splitlines():  # every table has as many cells in each row
        assert not line.startswith("|") or line.endswith("|")
