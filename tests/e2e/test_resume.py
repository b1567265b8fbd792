"""Whatever kills a run, what it trains is what the uninterrupted run trains, bit for bit."""

from __future__ import annotations

import signal

import pytest

from data_pipeline.build import build
from data_pipeline.config import BuildConfig, TokenizerConfig
from pretrain import metrics
from pretrain.checkpoint import CheckpointStore, newest
from pretrain.files import sha256
from tests.conftest import write_corpus
from tests.e2e.runs import MIXED, pha, start, training, validation, wait_for, write_config


@pytest.fixture(scope="module")
def reference(tiny_dataset, tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("reference")
    run = folder / "run"
    assert start(run, write_config(folder, tiny_dataset, run)).wait() == 0
    return run


def assert_same(run, reference):
    assert training(run) == training(reference)
    assert validation(run) == validation(reference)
    assert sha256(newest(run / "checkpoints").weights) == sha256(newest(reference / "checkpoints").weights)


def test_the_undisturbed_run_is_complete(reference):
    assert list(training(reference)) == list(range(1, 15))
    assert list(validation(reference)) == [6, 12, 14]
    losses = [loss for loss, _, _ in training(reference).values()]
    assert losses[-1] < losses[0] - 0.1, "it learns"
    assert [c.step for c in CheckpointStore(reference / "checkpoints").all()] == [12, 14]


def test_sigkill_at_several_moments(reference, tiny_dataset, tmp_path):
    run = tmp_path / "run"
    config = write_config(tmp_path, tiny_dataset, run)
    moments = {
        "before the first checkpoint": lambda: 3 in training(run),
        "while a checkpoint is written": lambda: any((run / "checkpoints").glob(".writing-*step-00000008")),
        "between two checkpoints": lambda: 11 in training(run),
    }
    for name, moment in moments.items():
        with start(run, config) as job:
            wait_for(job, moment)
            job.kill()
        steps = list(training(run))
        assert steps == list(range(1, len(steps) + 1)), f"killed {name}: a step is missing or told twice"
    assert start(run, config).wait() == 0
    assert_same(run, reference)


def test_a_polite_stop_saves_and_asks_to_be_started_again(reference, tiny_dataset, tmp_path):
    run = tmp_path / "run"
    config = write_config(tmp_path, tiny_dataset, run)
    with start(run, config) as job:
        wait_for(job, lambda: 5 in training(run))
        job.signal(signal.SIGUSR1)
        assert job.wait() == 75
    stopped_at = newest(run / "checkpoints").step
    assert 5 <= stopped_at < 14
    assert max(training(run)) == stopped_at, "nothing was lost"
    # The newest checkpoint rots on the disk: the run goes back to the one before, and arrives all the same.
    weights = newest(run / "checkpoints").path / "zero" / "mp_rank_00_model_states.pt"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 4
    weights.write_bytes(data)
    assert start(run, config).wait() == 0
    assert list((run / "checkpoints").glob(f"step-{stopped_at:08d}.damaged-1"))
    assert_same(run, reference)
    assert start(run, config).wait() == 0, "a finished run has nothing to do"


@pytest.fixture(scope="module")
def mixed_text(tiny_dataset, tmp_path_factory):
    """The config of a run on a mixture whose weights, sequence length and batch size all change."""
    folder = tmp_path_factory.mktemp("second")
    corpus = write_corpus(folder / "corpus.jsonl", 0, 25)
    tokenizer = TokenizerConfig(model=tiny_dataset / "tokenizer.model")
    options = {"tokenizer": tokenizer, "validation_fraction": 0.1, "test_fraction": 0.1}
    build(BuildConfig(sources=(str(corpus),), output=folder / "dataset", **options), progress=False).close()
    return MIXED.format(a=tiny_dataset, b=folder / "dataset")


def test_a_mixture_with_schedules_is_killed_and_resumed_exactly(mixed_text, tmp_path):
    runs = {}
    for name in ("calm", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        run = runs[name] = folder / "run"
        config = write_config(folder, tmp_path, run, mixed_text)
        if name == "killed":
            with start(run, config) as job:
                wait_for(job, lambda run=run: 8 in training(run))  # beyond all changes; the checkpoint is of step 6
                job.kill()
        assert start(run, config).wait() == 0
    assert_same(runs["killed"], runs["calm"])
    info = newest(runs["killed"] / "checkpoints").info()
    assert info.state.sequences == 4 * 4 + 6 * 8
    state = info.state.data.model_dump_json()
    assert len(state) < 1024
    assert state == newest(runs["calm"] / "checkpoints").info().state.data.model_dump_json()
    records = metrics.read(runs["killed"] / "metrics.jsonl")
    assert [r["tokens"] for r in metrics.of_kind(records, "train")][:7] == [64] * 4 + [128] * 2 + [256]
    last = metrics.of_kind(records, "validation")[-1]
    parts = last["components"]
    assert last["loss"] == pytest.approx((parts["a"]["loss"] + parts["b"]["loss"]) / 2)

    # Other data is refused, or read from its next epoch by choice.
    config = runs["killed"].parent / "run.yaml"
    refused = pha("train", config, "train.steps=11", "data.seed=5")
    assert refused.returncode == 2
    assert "data.seed was 0 and is now 5" in refused.stderr
    assert start(runs["killed"], config, "train.steps=12", "data.seed=5", "data.on_change=next_epoch").wait() == 0
    changed = newest(runs["killed"] / "checkpoints").info().state
    assert (changed.step, changed.sequences, changed.data.first_step, changed.data.first_sequence) == (12, 80, 10, 64)
    assert changed.data.first_epoch > 0
