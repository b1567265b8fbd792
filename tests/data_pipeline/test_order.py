from __future__ import annotations

import time
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.order import Order

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=25).filter(lambda s: sum(s) >= 2)


def labels_of(order, k, offsets):
    """Numbers of the corpus's tokens (block after block) that sequence k has as inputs and labels."""
    tokens = [offsets[b] + i for b, start, stop in order.locate(k) for i in range(start, stop)]
    return tokens[:-1], tokens[1:]


@settings(max_examples=300)
@given(sizes, st.integers(1, 17), st.integers(1, 7), st.integers(0, 2**64 - 1), st.booleans(), st.integers(0, 3))
def test_every_token_is_a_label_exactly_once_an_epoch(blocks, seq_len, lanes, seed, shuffle, epoch):
    order = Order(np.array(blocks), seq_len, lanes, seed, shuffle)
    offsets = np.concatenate([[0], np.cumsum(blocks)])
    stream = [offsets[b] + i for b in order.permutation(epoch) for i in range(blocks[b])]
    assert sorted(stream) == list(range(sum(blocks)))  # the permutation is one
    count = order.sequences_per_epoch
    pairs = []
    for k in range(epoch * count, (epoch + 1) * count):
        inputs, labels = labels_of(order, k, offsets)
        assert len(inputs) <= seq_len
        pairs += zip(inputs, labels, strict=True)
    assert sorted(pairs) == sorted(pairwise(stream))
    assert 0 <= count * seq_len - (sum(blocks) - 1) < lanes * seq_len  # padding of an epoch


@given(sizes, st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))
def test_lanes_read_forward_through_equal_contiguous_cuts(blocks, seq_len, lanes, seed):
    order = Order(np.array(blocks), seq_len, lanes, seed, True)
    offsets = np.concatenate([[0], np.cumsum(blocks)])
    stream = [offsets[b] + i for b in order.permutation(0) for i in range(blocks[b])]
    rows = order.sequences_per_epoch // lanes
    for lane in range(lanes):
        inputs = list(chain(*(labels_of(order, row * lanes + lane, offsets)[0] for row in range(rows))))
        start = lane * rows * seq_len
        assert inputs == stream[:-1][start : start + rows * seq_len]


def test_epochs_and_seeds_differ_and_repeat():
    blocks = np.full(200, 11)
    first, again, other = (Order(blocks, 8, 4, seed, True) for seed in (1, 1, 2))
    assert not np.array_equal(first.permutation(0), first.permutation(1))
    assert not np.array_equal(first.permutation(0), other.permutation(0))
    assert np.array_equal(first.permutation(5), again.permutation(5))
    in_order = [first.locate(k) for k in range(3 * first.sequences_per_epoch)]
    backwards = [again.locate(k) for k in reversed(range(3 * again.sequences_per_epoch))]
    assert in_order == backwards[::-1]  # no state
    plain = Order(blocks, 8, 4, 1, False)
    assert plain.permutation(3).tolist() == list(range(200))
    assert plain.locate(0) == plain.locate(plain.sequences_per_epoch)


def test_permutation_is_uniform_enough():
    order = Order(np.full(5, 3), 2, 1, 0, True)
    firsts = np.bincount([order.permutation(epoch)[0] for epoch in range(5000)], minlength=5)
    assert (abs(firsts - 1000) < 150).all()


def test_known_order():
    # a changed order would break the exact resumption of every run: this test may never be adapted
    order = Order(np.array([5, 9, 2, 7, 4, 6]), 4, 2, seed=42, shuffle=True)
    assert [order.permutation(epoch).tolist() for epoch in (0, 1)] == [[1, 4, 3, 5, 0, 2], [4, 5, 3, 0, 2, 1]]
    assert [list(map(tuple, order.locate(k))) for k in (0, 1, order.sequences_per_epoch)] == [
        [(1, 0, 5)],
        [(3, 3, 7), (5, 0, 1)],
        [(4, 0, 4), (5, 0, 1)],
    ]


def test_seek_cost_is_independent_of_the_position():
    order = Order(np.full(140_000, 65_536), 2048, 64, 0, True)  # nine billion tokens

    def cost(first):
        order.locate(first)  # the epoch's permutation, once
        started = time.perf_counter()
        for k in range(first, first + 2000):
            order.locate(k)
        return time.perf_counter() - started

    near, far = min(cost(0) for _ in range(3)), min(cost(10**14) for _ in range(3))
    assert far < 5 * near
    started = time.perf_counter()
    Order(np.full(140_000, 65_536), 2048, 64, 0, True).locate(10**14)
    assert time.perf_counter() - started < 1.0


def test_only_two_epochs_are_kept():
    order = Order(np.full(10, 10), 4, 1, 0, True)
    for epoch in range(6):
        order.locate(epoch * order.sequences_per_epoch)
    assert len(order._stream._epochs) == 2


@pytest.mark.parametrize(
    ("blocks", "seq_len", "lanes", "seed"), [([1], 4, 1, 0), ([9], 0, 1, 0), ([9], 4, 0, 0), ([9], 4, 1, -1)]
)
def test_impossible_orders_are_refused(blocks, seq_len, lanes, seed):
    with pytest.raises(DataError):
        Order(np.array(blocks), seq_len, lanes, seed, True)
    with pytest.raises(IndexError):
        Order(np.array([9]), 4, 1, 0, True).locate(-1)


@settings(max_examples=100)
@given(
    st.lists(st.integers(0, 90), min_size=1, max_size=25).filter(lambda s: sum(s) >= 2),
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 17)), max_size=4),
    st.integers(0, 99),
    st.booleans(),
)
def test_a_changed_sequence_length_loses_and_repeats_nothing(blocks, lanes, changes, seed, two_levels):
    firsts = np.cumsum([0, *(gap for gap, _ in changes)]).tolist()
    lengths = [7, *(length for _, length in changes)]
    schedule = list(zip(firsts, lengths, strict=True))
    order = Order(np.array(blocks), schedule, lanes, seed, True, plain_units=0 if two_levels else 10**6)
    offsets = np.concatenate([[0], np.cumsum(blocks)])
    found: dict[int, list] = {}
    end = firsts[-1] + 3 * lanes * sum(blocks)
    pieces, tokens = order.locate_all(np.arange(end)), [[] for _ in range(end)]
    for k, block, start, stop in zip(*(part.tolist() for part in pieces), strict=True):
        tokens[k] += range(offsets[block] + start, offsets[block] + stop)
    for k in range(end):
        length = [length for first, length in schedule if first <= k][-1]
        assert len(tokens[k][:-1]) <= length
        if k % 29 == 0:
            assert order.length_at(k) == length
            assert labels_of(order, k, offsets) == (tokens[k][:-1], tokens[k][1:])
    epochs = order.epochs_of(np.arange(end))
    assert (np.diff(epochs) >= 0).all()
    for k, epoch in enumerate(epochs.tolist()):
        found.setdefault(epoch, []).extend(pairwise(tokens[k]))
    for epoch in range(order.epoch_of(end)):  # each is complete
        stream = [offsets[b] + i for b in order.permutation(epoch) for i in range(blocks[b])]
        assert sorted(found[epoch]) == sorted(pairwise(stream))


def test_two_levels_permute_everything_and_differ_by_epoch():
    order = Order(np.full(5000, 3), 2, 4, 7, True, plain_units=4000)
    first, second = order.permutation(0), order.permutation(1)
    assert sorted(first) == sorted(second) == list(range(5000))
    assert (first != second).mean() > 0.99
    assert order.locate(0)[0].block == first[0]
    # neighbours come from all over the dataset
    assert abs(np.diff(first[:500])).mean() > 1000


def test_known_order_of_two_levels():
    # like test_known_order, for datasets of more than 262,144 blocks
    order = Order(np.arange(3000) % 5 + 1, 4, 2, seed=42, shuffle=True, plain_units=1000)
    assert order.permutation(0)[:6].tolist() == [415, 202, 307, 145, 1447, 1354]
    assert order.permutation(1)[-6:].tolist() == [790, 2137, 1654, 2593, 2119, 397]


def test_changes_of_the_sequence_length_rise():
    with pytest.raises(DataError, match="rising order"):
        Order(np.array([99]), [(0, 4), (5, 8), (5, 4)], 2, 0, True)


def test_a_trillion_tokens_are_found_at_once_in_any_epoch():
    order = Order(np.full(15_300_000, 65_536), 2048, 512, 0, True)
    times = []
    for k in (0, 10**9, 10**15):  # each in an epoch that has not been touched
        started = time.perf_counter()
        assert order.locate(k)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.05
