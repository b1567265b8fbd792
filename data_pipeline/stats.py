"""What a dataset holds, in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.dataset import Dataset, Split
from data_pipeline.stream import Packing, make_order


def stats(path: Path | str, packing: Packing | None = None, seq_len: int = 1024) -> dict[str, Any]:
    """Figures of the dataset at `path`, ready for JSON: by split, and of the whole.

    Per split: documents, tokens (separators included), bytes and words of the normalised text, blocks, shards and
    their bytes, `bytes_per_token`, `tokens_per_word`, `words_per_document`, `tar_overhead` (shard bytes beyond the
    tokens' own, as a share of those) and `vocabulary_used` (distinct ids). With a `packing`, also `sequences` of an
    epoch of `seq_len` tokens in one lane and their `padding_share`. Reads all blocks. Raises DataError.
    """
    with Dataset.open(path) as dataset:
        itemsize = np.dtype(dataset.index.dtype).itemsize
        return {
            "path": str(dataset.path),
            "hash": dataset.hash,
            "dtype": dataset.index.dtype,
            "block_tokens": dataset.index.block_tokens,
            "tokenizer": dataset.index.tokenizer.model_dump(mode="json"),
            "report": dataset.index.report,
            "splits": {
                name: _split_stats(dataset.split(name), itemsize, dataset.vocab_size)
                | (_packed(dataset.split(name), packing, seq_len) if packing else {})
                for name in dataset.split_names
            },
        }


def _packed(split: Split, packing: Packing, seq_len: int) -> dict[str, int | float]:
    order = make_order(split, [(0, seq_len)], lanes=1, seed=0, shuffle=False, packing=packing)
    return {"sequences": order.sequences_per_epoch, "padding_share": order.padding_share}


def token_counts(split: Split, vocab_size: int) -> np.ndarray:
    """How often each id occurs in a split, separators included, int64 [vocab_size]. Raises DataError for bad blocks."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for number in range(len(split.blocks)):
        counts += np.bincount(split.read_block(number), minlength=vocab_size)
    return counts


def _split_stats(split: Split, itemsize: int, vocab_size: int) -> dict[str, int | float]:
    stored = sum(shard.bytes for shard in split.info.shards)
    return {
        "documents": split.documents,
        "tokens": split.tokens,
        "bytes": split.bytes,
        "words": split.words,
        "blocks": split.info.blocks,
        "shards": len(split.info.shards),
        "shard_bytes": stored,
        "bytes_per_token": split.bytes / split.tokens,
        "tokens_per_word": split.tokens / max(1, split.words),
        "words_per_document": split.words / split.documents,
        "tar_overhead": stored / (split.tokens * itemsize) - 1.0,
        "vocabulary_used": int(np.count_nonzero(token_counts(split, vocab_size))),
    }
