from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.best_fit import PackedOrder, best_fit, count_rows
from data_pipeline.errors import DataError
from data_pipeline.order import Piece
from data_pipeline.pack import IGNORE, pack_documents

#: blocks of documents, each its number of tokens
corpora = st.lists(st.lists(st.integers(1, 60), min_size=0, max_size=9), min_size=1, max_size=30).filter(
    lambda blocks: sum(map(len, blocks)) > 0
)


def packed(blocks, seq_len, lanes=1, seed=0, shuffle=True, **options):
    counts = np.array([len(block) for block in blocks])
    return PackedOrder(
        np.array([sum(block) for block in blocks], dtype=np.int64),
        np.cumsum(counts) - counts,
        np.array([n for block in blocks for n in block]),
        seq_len,
        lanes,
        seed,
        shuffle,
        **options,
    )


@settings(max_examples=150)
@given(corpora, st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**64 - 1), st.integers(0, 3), st.booleans())
def test_every_token_is_read_once_an_epoch_and_what_fits_is_whole(blocks, seq_len, lanes, seed, epoch, two_levels):
    order = packed(blocks, seq_len, lanes, seed, plain_units=0 if two_levels else 10**6)
    count = order.sequences_per_epoch
    found = []
    for k in range(epoch * count, (epoch + 1) * count):
        assert order.epoch_of(k) == epoch
        pieces = order.locate(k)
        assert sum(piece.stop - piece.start for piece in pieces) <= seq_len
        found += pieces
    expected = []
    for number, block in enumerate(blocks):
        for start, tokens in zip(np.cumsum(block) - block, block, strict=True):
            expected += [
                Piece(number, start + cut, start + min(cut + seq_len, tokens)) for cut in range(0, tokens, seq_len)
            ]
    assert sorted(found) == expected
    assert order.padding_share == pytest.approx(1 - sum(map(sum, blocks)) / (count * seq_len))
    assert count - order.sequences < lanes


@given(st.lists(st.lists(st.integers(1, 90), max_size=40), min_size=1, max_size=12), st.integers(1, 50))
def test_counting_agrees_with_packing(groups, seq_len):
    expected = []
    for group in groups:
        pieces = [Piece(0, cut, min(cut + seq_len, n)) for n in group for cut in range(0, n, seq_len)]
        expected.append(len(best_fit(pieces, seq_len)))
    bounds = np.cumsum([0, *map(len, groups)])
    assert count_rows(np.array([n for g in groups for n in g]), bounds, seq_len).tolist() == expected


def test_best_fit_takes_the_fullest_row_that_holds_a_document():
    sizes = [4, 6, 3, 7]  # the 4 goes with the 6, the 3 with the 7
    starts = np.cumsum([0, *sizes]).tolist()
    pieces = [Piece(0, a, b) for a, b in pairwise(starts)]
    assert best_fit(pieces, 10) == [[pieces[0], pieces[1]], [pieces[2], pieces[3]]]


def test_documents_of_the_usual_lengths_waste_little():
    rng = np.random.default_rng(0)
    blocks = [np.clip(rng.lognormal(6.5, 1.0, 60).astype(int), 32, 30_000).tolist() for _ in range(50)]
    assert packed(blocks, 1024, shuffle=False).padding_share < 0.02


def test_rows_of_documents():
    end = np.array
    rows = [[(end([1, 5, 6]), end([5, 6, 1])), (end([7]), end([8]))], []]
    tokens, labels, documents = pack_documents(rows, 5, 1)
    assert tokens.tolist() == [[1, 5, 6, 7, 1], [1] * 5]
    assert labels.tolist() == [[5, 6, 1, 8, IGNORE], [IGNORE] * 5]
    assert documents.tolist() == [[0, 0, 0, 1, 2], [0] * 5]


def test_impossible_packings_are_refused():
    with pytest.raises(DataError, match="nothing to predict"):
        packed([[]], 8)
    with pytest.raises(DataError, match="seq_len 0"):
        packed([[4]], 0)
    with pytest.raises(IndexError):
        packed([[4]], 8).locate(-1)
