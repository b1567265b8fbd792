"""Mixtures, schedules and packings, read through the loader: whatever the world and the start, the same batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.batch import IGNORE
from data_pipeline.errors import DataError
from data_pipeline.loader import Loader
from data_pipeline.mixture import CYCLE, Mixture
from data_pipeline.stream import Stream

SHARED = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
positive = st.lists(st.floats(0.01, 1), min_size=1, max_size=5)


@given(st.lists(st.tuples(st.integers(1, 200_000), positive), min_size=1, max_size=3), st.integers(0, 400_000))
def test_shares_hold_at_any_prefix(segments, k):
    names = "abcde"
    firsts = np.cumsum([0, *(gap for gap, _ in segments[:-1])]).tolist()
    weights = [(first, dict(zip(names, w, strict=False))) for first, (_, w) in zip(firsts, segments, strict=True)]
    mixture = Mixture(names, weights)
    counts = np.array([mixture.count(c, k) for c in range(5)])
    assert counts.sum() == k
    ideal, active = np.zeros(5), 0
    for (first, shares), last in zip(weights, [*firsts[1:], k], strict=True):
        length = max(0, min(last, k) - first)
        total = sum(shares.values())
        ideal += np.array([shares.get(name, 0) / total for name in names]) * length
        # a component is within the number of components, and its share rounded to a slot of the cycle
        active += (len(shares) + length / CYCLE) if length else 0
    assert (abs(counts - ideal) <= active).all()
    component, number = mixture.locate(k)
    assert number == counts[component]
    assert mixture.count(component, k + 1) == number + 1


def test_a_mixture_counts_like_a_scan():
    mixture = Mixture("ab", [(0, {"a": 3, "b": 1}), (100, {"b": 1}), (150, {"a": 1, "b": 2})])
    seen = [0, 0]
    for k in range(70_000):
        component, number = mixture.locate(k)
        assert number == seen[component]
        seen[component] += 1
        assert not 100 <= k < 150 or component == 1
    assert [mixture.count(c, 70_000) for c in (0, 1)] == seen
    assert mixture.locate(10**15) == mixture.locate(10**15)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([(0, {"x": 1.0})], "no dataset of the mixture"),
        ([(0, {"a": -1.0, "b": 2.0})], "at least 0"),
        ([(0, {"a": 0.0})], "one of them above 0"),
        ([(0, {"a": 1.0, "b": 1e-9})], "65,536th"),
        ([(1, {"a": 1.0})], "from 0 on"),
        ([(0, {"a": 1.0}), (0, {"b": 1.0})], "rising order"),
    ],
)
def test_impossible_weights_are_one_sentence(weights, message):
    with pytest.raises(DataError, match=message):
        Mixture("ab", weights)


def stream_of(dataset, packing, seed=0, lanes=5):
    splits = {"big": dataset.split("train"), "small": dataset.split("validation")}
    weights = [(0, {"big": 2.0, "small": 1.0}), (60, {"big": 1.0, "small": 3.0})]
    lengths = 48 if packing == "best_fit" else [(0, 24), (36, 48)]
    return Stream(splits, seq_len=lengths, lanes=lanes, seed=seed, packing=packing, weights=weights)


BATCHES = [(0, 6), (4, 12), (7, 24)]  # 0..24 in sixes, ..60 in twelves, then 24


def first_of(step):
    return sum(6 if s < 4 else 12 if s < 7 else 24 for s in range(step))


@SHARED
@given(
    st.sampled_from(["concatenate", "best_fit"]), st.integers(0, 12), st.sampled_from([1, 2, 3, 6]), st.integers(0, 99)
)
def test_any_world_and_any_start_read_the_same(dataset, packing, step, world, seed):
    options = {"global_batch": BATCHES, "prefetch": 0}
    whole = Loader(stream_of(dataset, packing, seed), **options)
    for _ in range(step):
        next(whole)
    assert whole.sequences_consumed == first_of(step)
    expected = [next(whole) for _ in range(2)]
    ranks = [
        Loader(
            stream_of(dataset, packing, seed),
            **options,
            rank=r,
            world=world,
            start_step=step,
            start_sequence=first_of(step),
        )
        for r in range(world)
    ]
    for batch in expected:
        parts = [next(rank) for rank in ranks]
        for name in ("tokens", "labels", "documents"):
            assert np.array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(batch, name))
        assert {p.first_sequence for p in parts} == {batch.first_sequence}
        assert batch.tokens.shape[1] == (24 if packing == "concatenate" and batch.first_sequence < 36 else 48)


def test_reading_ahead_follows_the_batch_schedule(dataset):
    with (
        Loader(stream_of(dataset, "concatenate"), global_batch=BATCHES, prefetch=3) as ahead,
        Loader(stream_of(dataset, "concatenate"), global_batch=BATCHES, prefetch=0) as now,
    ):
        for _ in range(10):
            assert np.array_equal(next(ahead).tokens, next(now).tokens)


def test_best_fit_rows_hold_whole_documents_and_their_ends(dataset):
    split, bos = dataset.split("train"), dataset.bos_id
    stream = Stream({"train": split}, seq_len=2000, lanes=3, packing="best_fit")  # longer than any document
    loader = Loader(stream, global_batch=3, prefetch=0)
    expected = sorted(tokens.tobytes() for _, tokens in split.iter_documents())
    found, inputs = [], 0
    for first in range(0, stream.orders[0].sequences_per_epoch, 3):
        batch = loader.read(first)
        for tokens, labels, documents in zip(batch.tokens, batch.labels, batch.documents, strict=True):
            read = labels != IGNORE
            inputs += int(read.sum())
            for number in range(documents[read].max(initial=-1) + 1):
                at = (documents == number) & read
                assert tokens[at][0] == bos
                assert labels[at][-1] == bos
                assert np.array_equal(tokens[at][1:], labels[at][:-1])
                found.append(tokens[at][1:].astype(dataset.index.dtype).tobytes())
    assert sorted(found) == expected
    assert inputs == split.tokens
    shape = stream.orders[0].sequences_per_epoch * 2000
    assert loader.padding_share == pytest.approx(1 - split.tokens / shape)


def test_what_cannot_be_streamed_is_one_sentence(dataset):
    split = dataset.split("train")
    with pytest.raises(DataError, match="best_fit packing cannot change"):
        Stream({"a": split}, seq_len=[(0, 8), (9, 16)], lanes=1, packing="best_fit")
    with pytest.raises(DataError, match="needs weights"):
        Stream({"a": split, "b": split}, seq_len=8, lanes=1)
    with pytest.raises(DataError, match="needs seq_len"):
        Loader(split, global_batch=2)


def test_an_order_can_begin_at_a_later_epoch(dataset):
    split = dataset.split("train")
    plain, later = (Stream({"a": split}, seq_len=32, lanes=4, first_epoch=e) for e in (0, 3))
    epoch = plain.orders[0].sequences_per_epoch
    assert [later.find(k)[1].locate(k) for k in range(20)] == [plain.orders[0].locate(3 * epoch + k) for k in range(20)]
    assert later.last_epoch(epoch) == 3
    assert later.last_epoch(epoch + 1) == 4
