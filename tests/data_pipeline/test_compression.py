from __future__ import annotations

import pytest

from data_pipeline.compression import tokenizer_report
from data_pipeline.tokenizer import load_tokenizer

from .test_gpt2 import write_gpt2


def test_figures_are_those_of_the_text(built, dataset, tmp_path):
    folder = write_gpt2(tmp_path / "gpt2")
    report = tokenizer_report(built, folder)
    gpt2, ours = load_tokenizer(folder), dataset.tokenizer()
    assert report["gpt2_sha256"] == gpt2.hash
    for name, part in report["splits"].items():
        split = dataset.split(name)
        assert (part["documents"], part["bytes"], part["words"]) == (split.documents, split.bytes, split.words)
        texts = [ours.decode(ids.tolist()) for _, ids in split.iter_documents()]
        for who, tokenizer in (("dataset", ours), ("gpt2", gpt2)):
            ids = [i for text in texts for i in tokenizer.encode(text)]
            single = sum(len(tokenizer.decode_bytes([i])) == 1 for i in ids)
            assert part[who] == {
                "tokens": len(ids),
                "bytes_per_token": pytest.approx(split.bytes / len(ids)),
                "tokens_per_word": pytest.approx(len(ids) / split.words),
                "distinct": len(set(ids)),
                "single_byte_share": pytest.approx(single / len(ids)),
            }
    used = {i for _, ids in dataset.split("train").iter_documents() for i in ids.tolist()} | {dataset.bos_id}
    vocabulary = report["vocabulary"]
    assert (vocabulary["size"], vocabulary["used"]) == (600, len(used))
    assert vocabulary["coverage"] == pytest.approx(len(used) / 600)
    assert 0 < vocabulary["seldom"] < len(used)


def test_the_sample_is_bounded_and_gpt2_optional(built):
    report = tokenizer_report(built, sample_bytes=5000)
    assert report["gpt2_sha256"] is None
    for part in report["splits"].values():
        assert 5000 <= part["bytes"] < 8000
        assert "gpt2" not in part
