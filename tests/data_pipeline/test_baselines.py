from __future__ import annotations

import lzma
import math
from collections import Counter

import pytest

from data_pipeline.baselines import unigram_bits_per_byte, xz_bits_per_byte
from data_pipeline.errors import DataError


def tokens_of(split):
    return [int(t) for b in range(len(split.blocks)) for t in split.read_block(b)]


def test_unigram_is_the_textbook_formula(dataset):
    counts, total = Counter(tokens_of(dataset.split("train"))), dataset.split("train").tokens
    held_out = dataset.split("validation")
    bits = sum(-math.log2((counts[t] + 1) / (total + dataset.vocab_size)) for t in tokens_of(held_out)[1:])
    assert unigram_bits_per_byte(dataset, "validation") == pytest.approx(bits / held_out.bytes)


def test_xz_is_that_of_the_joined_text(dataset):
    tokenizer = dataset.tokenizer()
    texts = [tokenizer.decode(ids.tolist()) for _, ids in dataset.split("validation").iter_documents()]
    size = len(lzma.compress("\n".join(texts).encode(), preset=9 | lzma.PRESET_EXTREME))
    assert xz_bits_per_byte(dataset, "validation") == pytest.approx(8 * size / dataset.split("validation").bytes)


def test_unknown_split_is_named(dataset):
    for measure in (unigram_bits_per_byte, xz_bits_per_byte):
        with pytest.raises(DataError, match="no split 'dev'"):
            measure(dataset, "dev")
