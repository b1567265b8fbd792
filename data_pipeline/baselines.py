"""What a language model has to beat: bits per byte of two methods that need no training run."""

from __future__ import annotations

import lzma

import numpy as np

from data_pipeline.dataset import Dataset
from data_pipeline.stats import token_counts


def unigram_bits_per_byte(dataset: Dataset, split: str) -> float:
    """Cross entropy of a split under train's token frequencies with add-one smoothing, in bits per byte of text.

    It counts the tokens that a language model is scored on: all of the split but the stream's very first separator.
    Raises DataError if the split does not exist or is damaged.
    """
    train = token_counts(dataset.split("train"), dataset.vocab_size)
    held_out = dataset.split(split)
    predicted = token_counts(held_out, dataset.vocab_size)
    predicted[dataset.bos_id] -= 1
    log_probability = np.log2((train + 1) / (train.sum() + dataset.vocab_size))
    return float(-(predicted * log_probability).sum() / held_out.bytes)


def xz_bits_per_byte(dataset: Dataset, split: str) -> float:
    """Size of a split's text after LZMA at its strongest (``xz -9e``), in bits per byte of text.

    The documents are joined by newlines, so that ends of documents cost something here too. The compressor takes
    about 700 MB of memory at most. Raises DataError if the split does not exist or is damaged.
    """
    tokenizer = dataset.tokenizer()
    held_out = dataset.split(split)
    compressor = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    size = 0
    for number, (_, ids) in enumerate(held_out.iter_documents()):
        text = tokenizer.decode_bytes(ids.tolist())
        size += len(compressor.compress(b"\n" + text if number else text))
    size += len(compressor.flush())
    return 8.0 * size / held_out.bytes
