from __future__ import annotations

import pytest

from data_pipeline.build import build
from data_pipeline.config import BuildConfig, TokenizerConfig
from data_pipeline.corpus import Corpus
from data_pipeline.errors import DataError
from data_pipeline.stats import stats


def test_one_dataset_keeps_its_hash_and_several_have_one_by_name(built, dataset):
    one, two, turned = (Corpus.open(dict.fromkeys(names, built)) for names in ("a", "ab", "ac"))
    assert one.hash == dataset.hash
    assert len({one.hash, two.hash, turned.hash}) == 3
    assert list(two.splits("test")) == ["a", "b"]
    assert two.tokenizer_hash == dataset.tokenizer_hash
    assert two.vocab_size == dataset.vocab_size


def test_tokenizers_must_agree(built, corpus, settings, tmp_path):
    other = {**settings, "tokenizer": TokenizerConfig(vocab_size=500)}
    build(BuildConfig(sources=(str(corpus),), output=tmp_path / "other", **other), progress=False).close()
    with pytest.raises(DataError, match=r"'b' .* has another tokenizer"):
        Corpus.open({"a": built, "b": tmp_path / "other"})


def test_statistics_of_a_packing(built, dataset):
    plain = stats(built)["splits"]["train"]
    assert "padding_share" not in plain
    cut, whole = (stats(built, packing, 100)["splits"]["train"] for packing in ("concatenate", "best_fit"))
    tokens = dataset.split("train").tokens
    assert cut["padding_share"] == pytest.approx(1 - (tokens - 1) / (cut["sequences"] * 100))
    assert whole["padding_share"] == pytest.approx(1 - tokens / (whole["sequences"] * 100))
    assert whole["sequences"] >= cut["sequences"]
