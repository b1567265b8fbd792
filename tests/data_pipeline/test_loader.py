from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.batch import IGNORE, read_sequences
from data_pipeline.dataset import Dataset, Split
from data_pipeline.errors import DataError
from data_pipeline.loader import Loader, evaluation_batches
from data_pipeline.storage import DamagedData

ARRAYS = ("tokens", "labels", "documents")
SHARED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def same(a, b):
    return a.first_sequence == b.first_sequence and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ARRAYS)


@SHARED
@given(
    st.sampled_from([1, 2, 3, 4, 6]), st.integers(0, 10**7), st.sampled_from([None, 1, 5]), st.integers(0, 2**64 - 1)
)
def test_any_world_reads_the_same_global_batches(dataset, world, start, lanes, seed):
    split = dataset.split("train")
    options = {"seq_len": 33, "global_batch": 12, "lanes": lanes, "seed": seed}
    whole = Loader(split, **options).read(start)
    parts = [Loader(split, **options, rank=rank, world=world).read(start) for rank in range(world)]
    for name in ARRAYS:
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    assert {part.first_sequence for part in parts} == {start}


@SHARED
@given(st.integers(0, 5000), st.sampled_from([(2, 12), (3, 4), (12, 6)]))
def test_a_changed_batch_size_continues_the_same_sequences(dataset, start, sizes):
    split = dataset.split("train")
    small, large = (Loader(split, seq_len=20, global_batch=size, lanes=4) for size in sizes)
    count = 12 // sizes[0]
    ours = np.concatenate([small.read(start + i * sizes[0]).tokens for i in range(count)])
    theirs = np.concatenate([large.read(start + i * sizes[1]).tokens for i in range(12 // sizes[1])])
    assert np.array_equal(ours, theirs)


def test_an_epoch_predicts_every_token_but_the_first_once(dataset):
    split = dataset.split("validation")
    loader = Loader(split, seq_len=50, global_batch=4, prefetch=0)
    labels, epoch = [], loader.order.sequences_per_epoch
    for first in range(0, epoch, 4):
        labels.append(loader.read(first).labels[: epoch - first])
    found = np.concatenate(labels).ravel()
    everything = np.concatenate([split.read_block(b) for b in loader.order.permutation(0)])
    assert np.array_equal(np.sort(found[found != IGNORE]), np.sort(everything[1:]))


def test_labels_are_the_next_tokens_and_documents_follow_separators(dataset):
    batch = Loader(dataset.split("train"), seq_len=200, global_batch=8).read(0)
    assert np.array_equal(batch.tokens[:, 1:], batch.labels[:, :-1])
    steps = np.diff(batch.documents, axis=1)
    assert np.array_equal(steps == 1, batch.tokens[:, 1:] == dataset.bos_id)
    assert steps.sum() > 0
    assert set(np.unique(steps)) == {0, 1}


@pytest.mark.parametrize("prefetch", [0, 1, 4])
@pytest.mark.parametrize("start", [0, 7, 10**6])
def test_iteration_equals_read_across_epochs(dataset, prefetch, start):
    split = dataset.split("test")
    options = {"seq_len": 64, "global_batch": 6, "rank": 1, "world": 2, "seed": 3}
    with Loader(split, **options, start_sequence=start, prefetch=prefetch) as loader:
        assert loader.sequences_consumed == start
        batches = 3 + 2 * loader.order.sequences_per_epoch // 6
        for i in range(batches):
            batch = next(loader)
            assert batch.first_sequence == start + 6 * i
            assert loader.sequences_consumed == start + 6 * (i + 1)
            assert same(batch, Loader(split, **options).read(batch.first_sequence))
        assert loader.wait_seconds > 0


def test_resuming_from_the_consumed_count_continues_exactly(dataset):
    split = dataset.split("train")
    options = {"seq_len": 64, "global_batch": 4}
    with Loader(split, **options) as loader:
        for _ in range(5):
            next(loader)
        consumed, expected = loader.sequences_consumed, next(loader)
    with Loader(split, **options, start_sequence=consumed) as resumed:
        assert same(next(resumed), expected)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_exceptions_surface_at_their_batch_and_stay(dataset, monkeypatch, prefetch):
    honest = Split.read_blocks
    calls = itertools.count()

    def read_blocks(split, numbers):
        if len(numbers) > 2 or next(calls) == 4:  # many at once, and then the fifth batch alone
            raise DamagedData("block 5 is corrupt.")
        return honest(split, numbers)

    monkeypatch.setattr(Split, "read_blocks", read_blocks)
    loader = Loader(dataset.split("train"), seq_len=16, global_batch=2, prefetch=prefetch)
    assert [next(loader).first_sequence for _ in range(4)] == [0, 2, 4, 6]
    for _ in range(2):
        with pytest.raises(DataError, match="block 5"):
            next(loader)
    assert loader.sequences_consumed == 8
    loader.close()


@SHARED
@given(
    st.integers(0, 10**5),
    st.integers(1, 40),
    st.sampled_from([(1, 1), (2, 3), (5, 7), (12, 30)]),
    st.booleans(),
)
def test_batches_read_together_are_those_read_alone(dataset, start, seq_len, sizes, shuffle):
    split = dataset.split("train")
    schedule = [(0, sizes[0]), (3, sizes[1])]
    loader = Loader(
        split, seq_len=seq_len, global_batch=schedule, lanes=5, shuffle=shuffle, start_sequence=start, prefetch=0
    )
    first = start
    for step in range(8):
        batch = next(loader)
        numbers = range(first, first + sizes[step >= 3])
        assert batch.first_sequence == first
        for place, k in enumerate(numbers):
            alone = read_sequences(loader.stream, [k], k)
            for name in ARRAYS:
                assert np.array_equal(getattr(batch, name)[place], getattr(alone, name)[0])
        first = numbers.stop


def test_a_batch_of_many_blocks_holds_few_of_them_at_once(built, monkeypatch):
    asked = []
    honest = Split.read_blocks
    monkeypatch.setattr(Split, "read_blocks", lambda self, n: asked.append(len(n)) or honest(self, n))
    with Dataset.open(built, cache_bytes=4096) as small, Dataset.open(built) as large:
        first, second = (Loader(d.split("train"), seq_len=50, global_batch=32, prefetch=0) for d in (small, large))
        assert small.split("train").blocks_at_once < 4
        assert same(next(first), next(second))
    assert max(asked[:-1]) < 4 < asked[-1]


def test_blocks_that_were_passed_are_let_go_and_come_back(dataset):
    split = dataset.split("train")
    loader = Loader(split, seq_len=100, global_batch=2, prefetch=0)
    epoch = loader.order.sequences_per_epoch
    first = [loader.read(k).tokens for k in range(0, epoch, 2)]
    held = split._reader.at_hand("train", range(len(split.blocks)))
    assert sum(block is not None for block in held) < len(held) / 2
    assert all(np.array_equal(loader.read(2 * i).tokens, tokens) for i, tokens in enumerate(first))


def test_damaged_shard_stops_a_loader(copy):
    for path in copy.glob("train-*.tar"):
        data = bytearray(path.read_bytes())
        data[600] ^= 4
        path.write_bytes(data)
    damaged = Dataset.open(copy)
    with (
        Loader(damaged.split("train"), seq_len=64, global_batch=4) as loader,
        pytest.raises(DataError, match="corrupt"),
    ):
        for _ in range(loader.order.sequences_per_epoch):
            next(loader)


def test_close_ends_the_thread_even_when_nobody_reads(dataset):
    before = threading.active_count()
    loader = Loader(dataset.split("train"), seq_len=16, global_batch=2, prefetch=2)
    assert threading.active_count() == before  # reading ahead begins with the first batch
    next(loader)
    assert threading.active_count() == before + 1
    time.sleep(0.1)  # the queue is full now
    started = time.perf_counter()
    loader.close()
    loader.close()
    assert time.perf_counter() - started < 2
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch": 6, "world": 4}, "cannot be shared equally by 4"),
        ({"global_batch": 0}, "cannot be shared"),
        ({"global_batch": 4, "world": 2, "rank": 2}, "rank 2 must be in"),
        ({"global_batch": 4, "start_sequence": -1}, "must not be negative"),
        ({"global_batch": 4, "seed": -1}, "seed -1"),
    ],
)
def test_impossible_requests_are_one_sentence(dataset, options, message):
    with pytest.raises(DataError, match=message):
        Loader(dataset.split("train"), seq_len=16, **options)


@SHARED
@given(st.integers(1, 4), st.integers(1, 5), st.integers(20, 300), st.none() | st.integers(1, 40))
def test_evaluation_reads_every_sequence_on_exactly_one_rank(dataset, world, batch_size, seq_len, limit):
    split = dataset.split("validation")
    stream = np.concatenate([split.read_block(b) for b in range(len(split.blocks))]).astype(np.int64)
    expected = stream[1:] if limit is None else stream[1 : limit * seq_len + 1]
    ranks = [list(evaluation_batches(split, seq_len, batch_size, r, world, limit)) for r in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert {b.tokens.shape for batches in ranks for b in batches} == {(batch_size, seq_len)}
    rows = [b.labels[i] for step in zip(*ranks, strict=True) for i in range(batch_size) for b in step]
    found = np.concatenate(rows)
    assert np.array_equal(found[found != IGNORE], expected)


def test_evaluation_refuses_impossible_numbers(dataset):
    with pytest.raises(DataError, match="batch_size 0"):
        next(evaluation_batches(dataset.split("validation"), 16, 0))
