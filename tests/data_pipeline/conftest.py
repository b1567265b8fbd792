"""A small corpus and the dataset that is built from it, shared by all tests of the package."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from data_pipeline.build import build
from data_pipeline.config import BuildConfig, TokenizerConfig
from data_pipeline.dataset import Dataset

SYLLABLES = ("ka", "lo", "mi", "ren", "tu", "sha", "vel", "or", "in", "pa", "de", "gri", "no", "ble", "st", "er", "um")


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Pseudo-English with indentation, digits, tabs, accents, Chinese and emoji; lengths from 20 to 300 words."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(800)]
    texts = []
    for number in range(count):
        parts = []
        for _ in range(rng.randint(20, 300)):
            parts.append(rng.choice(words))
            parts.append(rng.choices([" ", ".\n", "\n\n    ", "\t", "  "], weights=[60, 6, 1, 1, 1])[0])
        texts.append(f"Text {number} é 中文 😀 " + "".join(parts))
    return texts


def write_jsonl(path, texts, start: int = 0):
    lines = (json.dumps({"id": f"d{start + i}", "text": text}) + "\n" for i, text in enumerate(texts))
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return make_texts(400)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, texts):
    """A JSON Lines file of 400 documents, about 300 kB."""
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", texts)


@pytest.fixture(scope="session")
def settings():
    """Keyword arguments of BuildConfig that suit the small corpus."""
    return {
        "tokenizer": TokenizerConfig(vocab_size=600),
        "validation_fraction": 0.1,
        "test_fraction": 0.1,
        "block_tokens": 700,
        "shard_bytes": 60_000,
    }


@pytest.fixture(scope="session")
def built(tmp_path_factory, corpus, settings):
    """The path of a dataset that no test may change."""
    output = tmp_path_factory.mktemp("built") / "dataset"
    build(BuildConfig(sources=(str(corpus),), output=output, **settings), progress=False).close()
    return output


@pytest.fixture
def dataset(built):
    with Dataset.open(built) as opened:
        yield opened


@pytest.fixture
def copy(built, tmp_path):
    """A copy of the dataset to damage."""
    return shutil.copytree(built, tmp_path / "copy")
