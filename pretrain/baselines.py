"""What a model must beat on the same text: a unigram model of its tokens, and a general compressor."""

from __future__ import annotations

from data_pipeline.baselines import unigram_bits_per_byte, xz_bits_per_byte
from data_pipeline.dataset import Dataset


def measure(dataset: Dataset, split: str) -> dict[str, float]:
    """Bits per byte of `xz -9` and of a unigram model on the split's text."""
    return {"xz -9": xz_bits_per_byte(dataset, split), "unigram": unigram_bits_per_byte(dataset, split)}
