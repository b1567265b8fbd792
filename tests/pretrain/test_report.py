from __future__ import annotations

import json
import re

import pytest

from pretrain import config_file, metrics
from pretrain.errors import RunError
from pretrain.report import write_report
from pretrain.rundir import RunDirectory


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "a <b> run")
    directory.create()
    tree = {"run_dir": str(directory.path), "model": {"preset": "pha-nano"}, "data": {"path": "d"}}
    directory.write(config_file.parse(tree, "test"))
    return directory


def record(step, **values):
    return {
        "kind": "train",
        "step": step,
        "loss": 3.0 / step,
        "lr": 1e-3,
        "grad_norm": None if step == 2 else 1.0,
        "tokens": 64,
        "tokens_seen": 64 * step,
        "tokens_per_s": 100.0 * step,
        "mfu": 0.3,
        "data_wait": 0.01,
        "branches": ["gss", "attention", "ffn"],
        "mixing": [[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]],
        **values,
    }


def test_a_run_without_a_mixture_has_no_figures_of_it(run):
    file = metrics.MetricsFile(run.metrics)
    plain = {key: value for key, value in record(1).items() if key not in ("branches", "mixing")}
    file.write(plain)
    file.close()
    page = write_report(run.path).read_text(encoding="utf-8")
    assert page.count("<svg") == 6
    assert "Mixing" not in page


def test_shares_of_tokens_that_attend_have_a_figure(run):
    file = metrics.MetricsFile(run.metrics)
    for step in (1, 2):
        file.write(record(step, selected=[0.1, 0.2], branches=[], mixing=[]))
    scores = {"loss": 1.0, "perplexity": 2.7, "word_perplexity": 9.0, "bits_per_byte": 1.25}
    file.write({"kind": "validation", "step": 2, **scores, "selected": [0.0, 0.25]})
    file.close()
    page = write_report(run.path).read_text(encoding="utf-8")
    assert page.count("<svg") == 7
    assert "Share of tokens that attend" in page


def test_a_page_that_needs_nothing_else(run):
    file = metrics.MetricsFile(run.metrics)
    for step in (1, 2, 3):
        file.write(record(step))
    file.write({"kind": "event", "event": "resume", "step": 2})
    scores = {"loss": 1.0, "perplexity": 2.7, "word_perplexity": 9.0, "bits_per_byte": 1.25}
    file.write({"kind": "validation", "step": 3, **scores})
    file.close()
    (run.path / "baselines.json").write_text(json.dumps({"xz -9": 2.5}))
    sample = {"prompt": "<b>", "continuation": "x & y", "temperature": 0.8, "top_p": 0.9, "seed": 0, "step": 3}
    run.sample.write_text(json.dumps(sample))
    page = write_report(run.path).read_text(encoding="utf-8")
    assert page.count("<svg") == 8
    assert not re.search(r"""(src|href)=["']https?:""", page)
    assert "&lt;b&gt;" in page
    assert "x &amp; y" in page
    assert "1.2500" in page
    assert "2.5000 bits per byte" in page
    assert "a &lt;b&gt; run" in page


def test_a_run_without_records_is_one_sentence(run):
    with pytest.raises(RunError, match="no training record yet"):
        write_report(run.path)
