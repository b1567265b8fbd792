"""Schedules over steps as an order over sequences, and what happens when the data changes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.corpus import Corpus
from pretrain import config_file, data_plan
from pretrain.checkpoint import CheckpointInfo
from pretrain.data_plan import sequences_before
from pretrain.errors import RunError
from pretrain.evaluate import Evaluation, mix
from pretrain.rundir import RunDirectory
from pretrain.state import DataState, TrainState


def parse(data=None, **tree):
    base = {"run_dir": "r", "model": {"preset": "pha-nano", "vocab_size": 512}, "data": data or {"path": "d"}}
    return config_file.parse({**base, **tree}, "test")


def steps(*pairs):
    return [{"from_step": step, "value": value} for step, value in pairs]


@pytest.fixture(scope="module")
def corpus(tiny_dataset):
    return Corpus.open({"data": tiny_dataset})


def info_of(corpus, state):
    return CheckpointInfo(
        state=state, world_size=1, zero_stage=1, config_hash="c", dataset_hash=corpus.hash,
        tokenizer_hash=corpus.tokenizer_hash, fingerprint=1.0, versions={},
    )  # fmt: skip


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 9)), max_size=4), st.integers(0, 99), st.integers(0, 99))
def test_sequences_are_the_sum_of_the_batches(gaps, step, first):
    pairs, at = [(0, 5)], 0
    for gap, size in gaps:
        at += gap
        pairs.append((at, size))
    config = parse(train={"global_batch": steps(*pairs)})
    sizes = [[size for begin, size in pairs if begin <= s][-1] for s in range(step)]
    assert sequences_before(config, step, first) == sum(sizes[first:])


def test_changes_fall_on_the_batch_of_their_step(corpus):
    data = {"path": "d", "seq_len": steps((0, 8), (3, 16), (6, 32))}
    config = parse(data, train={"global_batch": steps((0, 4), (4, 10))})
    stream = data_plan.stream(config, corpus, DataState())
    assert [stream.length_at(k) for k in (0, 11, 12, 35, 36, 10**9)] == [8, 8, 16, 16, 32, 32]
    # An order that begins in between has seen the changes of before.
    later = data_plan.stream(config, corpus, DataState(first_step=4, first_sequence=100, first_epoch=7))
    assert [later.length_at(k) for k in (100, 119, 120)] == [16, 16, 32]
    assert later.last_epoch(101) == 7


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 20)), max_size=3))
def test_changes_fall_on_the_batch_of_their_step_after_rollbacks_too(corpus, moves):
    """Each move: so many steps forward, then back by at most so many."""
    data = {"path": "d", "seq_len": steps((0, 8), (3, 16), (6, 32))}
    config = parse(data, train={"global_batch": steps((0, 4), (4, 10))})
    state, step, sequence = DataState(), 0, 0
    for forward, back in [*moves, (12, 0)]:
        stream = data_plan.stream(config, corpus, state)
        for _ in range(forward):
            size = 4 if step < 4 else 10
            assert {stream.length_at(k) for k in range(sequence, sequence + size)} == {config.data.length_at(step)}
            step, sequence = step + 1, sequence + size
        if back:
            step = max(0, step - back)
            state.returns.append((sequence, step))


def test_the_state_is_small_and_what_it_holds_decides(corpus):
    weights = [{"from_step": s, "weights": {f"dataset-{i}": 0.125 for i in range(8)}} for s in range(0, 5000, 100)]
    names = {f"dataset-{i}": corpus.datasets["data"].path for i in range(8)}
    data = {
        "mixture": {"datasets": names, "weights": weights},
        "seq_len": steps(*((i * 1000, 2 + i) for i in range(200))),
        "seed": 2**63,
    }
    config = parse(data, train={"global_batch": steps(*((i * 10, 8 + i) for i in range(200)))})
    made = data_plan.identity(config, Corpus.open(names))
    state = DataState(made_with=made, first_step=10**9, first_sequence=10**15, first_epoch=10**15)
    assert len(json.dumps(state.model_dump())) < 1024
    assert set(made) > {"dataset", "data.seed", "data.lanes", "data.packing", "train.global_batch"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"seed": 4}, "data.seed was 0 and is now 4"),
        ({"packing": "best_fit"}, 'data.packing was "concatenate" and is now "best_fit"'),
        ({"lanes": 3}, "data.lanes was 24 and is now 3"),
        ({"seq_len": 64}, r"data.seq_len was \[\[0, 1024\]\] and is now \[\[0, 64\]\]"),
    ],
)
def test_changed_data_is_refused_or_begins_an_epoch_that_nobody_has_read(corpus, tmp_path, data, words):
    old = parse()
    state = TrainState(step=10, sequences=240, data=DataState(made_with=data_plan.identity(old, corpus)))
    info = info_of(corpus, state)
    data_plan.check_unchanged(old, corpus, tmp_path, info)
    new = parse({"path": "d", **data})
    with pytest.raises(RunError, match=f"{words}; restore it"):
        data_plan.check_unchanged(new, corpus, tmp_path, info)
    chosen = parse({"path": "d", **data, "on_change": "next_epoch"})
    data_plan.check_unchanged(chosen, corpus, tmp_path, info)
    after = data_plan.next_epoch(chosen, corpus, state)
    assert (after.first_step, after.first_sequence) == (10, 240)
    before = data_plan.stream(old, corpus, state.data)
    assert data_plan.stream(chosen, corpus, after).last_epoch(241) > before.last_epoch(240)
    # The run directory holds to the same rule.
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    directory.write(old)
    directory.check(chosen)
    directory.write(chosen)
    with pytest.raises(RunError, match="was started with other settings"):
        directory.check(old)


def test_a_checkpoint_of_before_the_state_was_kept_needs_only_the_same_dataset(corpus, tmp_path):
    info = info_of(corpus, TrainState(step=1, sequences=24))
    data_plan.check_unchanged(parse(), corpus, tmp_path, info)
    other = info.model_copy(update={"dataset_hash": "0" * 64})
    with pytest.raises(RunError, match="d has other text"):
        data_plan.check_unchanged(parse(), corpus, tmp_path, other)
    stranger = info.model_copy(update={"tokenizer_hash": "0" * 64})
    with pytest.raises(RunError, match="another tokenizer"):
        data_plan.check_unchanged(parse({"path": "d", "on_change": "next_epoch"}), corpus, tmp_path, stranger)


@pytest.mark.parametrize(
    ("data", "train", "words"),
    [
        ({"seed": 1}, {}, "either path"),
        ({"path": "d", "seq_len": 1}, {}, "at least 2"),
        ({"path": "d", "seq_len": steps((1, 8))}, {}, "must begin with 0"),
        ({"path": "d"}, {"global_batch": steps((0, 8), (0, 9))}, "rise from entry to entry"),
        ({"path": "d"}, {"global_batch": steps((0, 8), (5, 9)), "micro_batch": 4}, r"\(9\) must be a multiple"),
        ({"path": "d"}, {"global_batch": 0}, "at least 1"),
        ({"mixture": {"datasets": {"a": "x", "b": "y"}, "weights": []}}, {}, "weights"),
    ],
)
def test_impossible_schedules_are_one_sentence(data, train, words):
    with pytest.raises(RunError, match=words):
        parse(data, train=train)


def test_a_mixture_s_figures_are_weighted_means():
    parts = {
        "a": Evaluation("v", 10, 2.0, 1.0, 4.0, 1.0, True),
        "b": Evaluation("v", 30, 4.0, 1.0, 16.0, 2.0, False),
    }
    found = mix("v", parts, {"a": 6.0, "b": 2.0})
    assert (found.tokens, found.loss, found.bits_per_byte, found.complete) == (40, 2.5, 1.25, False)
    assert found.word_perplexity == pytest.approx(4.0**0.75 * 16.0**0.25)
