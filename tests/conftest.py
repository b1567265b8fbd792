"""Settings that hold for the whole suite: seeded, without deadlines, one thread."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch
from hypothesis import settings

# Examples are the same in every run, and a slow machine is not a failure.
settings.register_profile("pha", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("pha")
torch.set_num_threads(1)
os.chdir(Path(__file__).resolve().parents[1])  # runs that tests start find the packages here


def write_corpus(path: Path, start: int = 0, stop: int | None = None) -> Path:
    """Real English that every Python has: the help topics of pydoc, a few paragraphs a document, as JSONL."""
    from pydoc_data.topics import topics

    documents = []
    for name in sorted(topics)[start:stop]:
        paragraphs = topics[name].split("\n\n")
        for first in range(0, len(paragraphs), 6):
            documents.append({"id": f"{name}-{first}", "text": "\n\n".join(paragraphs[first : first + 6])})
    path.write_text("".join(json.dumps(d) + "\n" for d in documents), encoding="utf-8")
    return path


def build_tiny_dataset(folder: Path, topics: int | None = None) -> Path:
    """A dataset of about 200 thousand tokens in a new folder, or of so many help topics."""
    from data_pipeline.build import build
    from data_pipeline.config import BuildConfig, TokenizerConfig

    folder.mkdir(exist_ok=True)
    corpus = write_corpus(folder / "corpus.jsonl", stop=topics)
    config = BuildConfig(
        sources=(str(corpus),),
        output=folder / "dataset",
        tokenizer=TokenizerConfig(vocab_size=512),
        validation_fraction=0.05,
        test_fraction=0.05,
    )
    build(config, progress=False)
    return config.output


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    """The tiny dataset, built once."""
    return build_tiny_dataset(tmp_path_factory.mktemp("tiny"))
