from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.build_file import build_settings, share
from data_pipeline.config import BuildConfig
from data_pipeline.errors import DataError

NOTHING = {"tokenizer": {"kind": None, "vocab_size": None}, "test_fraction": None}


def test_a_file_is_the_whole_truth_but_for_options(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("sources: [a.txt]\noutput: out\ntokenizer: {vocab_size: 900}\n", encoding="utf-8")
    assert build_settings(path, [], NOTHING) == {
        "sources": ["a.txt"],
        "output": "out",
        "tokenizer": {"vocab_size": 900},
    }
    overruled = build_settings(path, [], {"tokenizer": {"kind": "unigram"}, "test_fraction": 0.0})
    config = BuildConfig.model_validate(overruled)
    assert (config.tokenizer.kind, config.tokenizer.vocab_size, config.test_fraction) == ("unigram", 900, 0.0)


def test_sources_mean_the_customary_settings():
    config = BuildConfig.model_validate(build_settings(Path("out"), ["b.txt"], NOTHING))
    assert (config.output, config.sources, config.tokenizer.vocab_size) == (Path("out"), ("b.txt",), 32_000)
    assert (config.validation_fraction, config.test_fraction) == (0.005, 0.005)
    smaller = build_settings(Path("out"), ["b.txt"], {"tokenizer": {"vocab_size": 300}})
    assert smaller["tokenizer"] == {"vocab_size": 300}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", None, "cannot be read"),
        ("a.yaml", "a: [", "is not valid YAML"),
        ("a.yml", "- a", "holds no settings"),
        ("a", None, "is no .yaml file and no sources are named"),
    ],
)
def test_what_is_no_build_is_one_sentence(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as error:
        build_settings(tmp_path / name, [], NOTHING)
    assert "\n" not in str(error.value)


def test_shares():
    assert share("3/8") == (3, 8)
    for wrong in ("3", "/", "a/b", "3/", "-1/2", ""):
        with pytest.raises(DataError, match="write it as I/N"):
            share(wrong)
