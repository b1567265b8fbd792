"""How well a dataset's tokenizer compresses its text, and how much of its vocabulary is used; beside GPT-2's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.dataset import Dataset, Split
from data_pipeline.stats import token_counts
from data_pipeline.tokenizer import Tokenizer, load_tokenizer

#: Bytes of text of each split that are encoded for the comparison.
SAMPLE_BYTES = 10_000_000


def tokenizer_report(path: Path | str, gpt2: Path | None = None, sample_bytes: int = SAMPLE_BYTES) -> dict[str, Any]:
    """Figures of the tokenizer of the dataset at `path`, ready for JSON.

    Args:
        path: the dataset.
        gpt2: folder of GPT-2's ``encoder.json`` and ``vocab.bpe`` to compare with.
        sample_bytes: text of each split that both tokenizers encode.

    Returns:
        ``vocabulary``: `size`, `used` in train (distinct ids), `coverage` (used / size), `seldom` (used less than 100
        times in train: too seldom to be learned). ``splits``: for the same documents, under ``dataset`` and ``gpt2``:
        `tokens` (without separators), `bytes_per_token`, `tokens_per_word`, `distinct` (ids that occur) and
        `single_byte_share` (tokens that stand for one byte).

    Raises:
        DataError: the dataset is damaged, or the GPT-2 files are.
    """
    other = load_tokenizer(gpt2) if gpt2 is not None else None
    with Dataset.open(path) as dataset:
        tokenizer = dataset.tokenizer()
        counts = token_counts(dataset.split(dataset.split_names[0]), dataset.vocab_size)
        used = int(np.count_nonzero(counts))
        return {
            "path": str(dataset.path),
            "tokenizer": dataset.index.tokenizer.model_dump(mode="json"),
            "gpt2_sha256": other.hash if other is not None else None,
            "vocabulary": {
                "size": dataset.vocab_size,
                "used": used,
                "coverage": used / dataset.vocab_size,
                "seldom": int(np.count_nonzero((counts > 0) & (counts < 100))),
            },
            "splits": {
                name: _split_report(dataset.split(name), tokenizer, other, sample_bytes) for name in dataset.split_names
            },
        }


def _split_report(split: Split, tokenizer: Tokenizer, other: Tokenizer | None, limit: int) -> dict[str, Any]:
    ours, theirs = _Counter(tokenizer), _Counter(other) if other is not None else None
    documents = bytes_ = words = 0
    for _, ids in split.iter_documents():
        data = tokenizer.decode_bytes(ids.tolist())
        text = data.decode("utf-8")
        ours.add(ids)
        if theirs is not None:
            theirs.add(theirs.tokenizer.encode_array(text))
        documents, bytes_, words = documents + 1, bytes_ + len(data), words + len(text.split())
        if bytes_ >= limit:
            break
    report: dict[str, Any] = {"documents": documents, "bytes": bytes_, "words": words}
    report["dataset"] = ours.figures(bytes_, words)
    if theirs is not None:
        report["gpt2"] = theirs.figures(bytes_, words)
    return report


class _Counter:
    """Counts the ids that one tokenizer gives."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self._single = np.array(tokenizer.byte_lengths()) == 1

    def add(self, ids: np.ndarray) -> None:
        """The ids of one document."""
        self._counts += np.bincount(ids, minlength=len(self._counts))

    def figures(self, bytes_: int, words: int) -> dict[str, float]:
        """What the ids counted so far say, for that much text."""
        tokens = int(self._counts.sum())
        return {
            "tokens": tokens,
            "bytes_per_token": bytes_ / max(1, tokens),
            "tokens_per_word": tokens / max(1, words),
            "distinct": int(np.count_nonzero(self._counts)),
            "single_byte_share": int(self._counts[self._single].sum()) / max(1, tokens),
        }
