from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.pack import IGNORE, pack_rows

BOS = 1


def packed(row, length, width):
    rows = np.full((1, width), 99, dtype=np.int64)
    rows[0, : len(row)] = row
    return [array[0].tolist() for array in pack_rows(rows, np.array([length]), BOS)]


def test_full_row():
    tokens, labels, documents = packed([5, 6, BOS, 7, BOS], 5, 5)
    assert tokens == [5, 6, BOS, 7]
    assert labels == [6, BOS, 7, BOS]
    assert documents == [0, 0, 1, 1]


def test_row_that_begins_with_a_separator_starts_at_zero():
    assert packed([BOS, 6, BOS, 7, 8], 5, 5)[2] == [0, 0, 1, 1]


def test_padding_is_a_document_of_its_own():
    tokens, labels, documents = packed([BOS, 5, 6], 3, 6)
    assert tokens == [BOS, 5, 6, BOS, BOS]
    assert labels == [5, 6, IGNORE, IGNORE, IGNORE]
    assert documents == [0, 0, 0, 1, 1]


def test_empty_row():
    assert packed([], 0, 4) == [[BOS] * 3, [IGNORE] * 3, [0] * 3]


def test_row_that_lacks_only_the_last_label():
    assert packed([5, 6, 7], 3, 4) == [[5, 6, 7], [6, 7, IGNORE], [0, 0, 0]]


@given(st.lists(st.integers(0, 4), min_size=0, max_size=12), st.integers(1, 12))
def test_against_the_definition(row, seq_len):
    row = row[: seq_len + 1]
    tokens, labels, documents = packed(row, len(row), seq_len + 1)
    assert [label for label in labels if label != IGNORE] == row[1:]
    assert tokens[: len(row)] == row[:seq_len]
    number = 0
    for i, token in enumerate(row[:seq_len]):
        number += i > 0 and token == BOS
        assert documents[i] == number
    assert set(documents[len(row) :]) <= {number + bool(row)}


def test_types_and_memory():
    arrays = pack_rows(np.ones((3, 9), dtype=np.int64), np.full(3, 9), BOS)
    assert [a.dtype for a in arrays] == [np.int64, np.int64, np.int32]
    assert all(a.shape == (3, 8) and a.flags.c_contiguous and a.flags.owndata for a in arrays)
