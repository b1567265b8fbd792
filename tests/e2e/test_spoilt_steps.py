"""Steps with a NaN or a spike: left out on every rank alike, or the run goes back and on behind them."""

from __future__ import annotations

import json
import sys

import pytest

from cluster.local import LocalJob
from pretrain import metrics
from pretrain.checkpoint import CheckpointStore, newest
from tests.e2e.runs import CONFIG, pha, training, write_config

GUARDED = CONFIG.replace("dropout: 0.1", "dropout: 0").replace("steps: 14", "steps: 20") + "guards: {window: 8}\n"


def run_with(faults: str, tmp_path, dataset, monkeypatch, *overrides: str, ranks: int = 2):
    monkeypatch.setenv("FAULTS", faults)
    run = tmp_path / "run"
    config = write_config(tmp_path, dataset, run, GUARDED)
    command = [sys.executable, "-m", "tests.e2e.faulty", "train", str(config), *overrides]
    return run, LocalJob(command, ranks, run / "logs").wait()


def events(run, kind: str):
    return [r for r in metrics.of_kind(metrics.read(run / "metrics.jsonl"), "event") if r["event"] == kind]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_nan_on_one_rank_and_a_spike_leave_the_weights_of_all_alone(stage, tiny_dataset, tmp_path, monkeypatch):
    overrides = (f"train.zero_stage={stage}", "guards.spike=skip", "train.steps=14", "eval.every=0")
    run, code = run_with("nan@6/1 spike@10", tmp_path, tiny_dataset, monkeypatch, *overrides)
    assert code == 0
    assert list(training(run)) == list(range(1, 15))
    ((nan,), (spike,)) = events(run, "nonfinite"), events(run, "spike")
    assert (nan["step"], nan["sequences"]) == (6, [40, 48]) and nan["loss"] is None
    assert (spike["step"], spike["sequences"]) == (10, [72, 80]) and spike["loss"] > 100
    assert newest(run / "checkpoints").info().state.guard.skipped == 2
    # the step after is that of weights that nobody has changed, on data that nobody has read twice
    losses = {step: loss for step, (loss, _, _) in training(run).items()}
    assert all(losses[step] < losses[1] + 0.1 for step in (7, 8, 9, 11, 12, 13, 14))
    shown = pha("data", "show", tiny_dataset, spike["documents"][0], "--json")
    assert shown.returncode == 0 and json.loads(shown.stdout)["text"]


def test_a_spike_takes_the_run_back_and_past_the_batch(tiny_dataset, tmp_path, monkeypatch):
    overrides = ("guards.spike=rollback", "guards.rollbacks=1", "eval.every=0")
    run, code = run_with("spike@11 spike@15", tmp_path, tiny_dataset, monkeypatch, *overrides)
    assert code == 0
    assert list(training(run)) == list(range(1, 21)), "each step is told once"
    (rollback,) = events(run, "rollback")
    assert (rollback["step"], rollback["left"], rollback["budget"]) == (8, 11, 0)
    state = newest(run / "checkpoints").info().state
    # 11 batches were read until the spike, and 12 after it
    assert (state.step, state.sequences, state.guard.rollbacks) == (20, 8 * (11 + 12), 1)
    assert [e["step"] for e in events(run, "spike")] == [15], "with the budget spent, a spike is left out"
    kept = (run / "metrics.superseded.jsonl").read_text()
    assert '"event": "spike"' in kept, "what was seen before the rollback is not lost"


def test_a_spike_before_the_first_checkpoint_is_left_out(tiny_dataset, tmp_path, monkeypatch):
    overrides = ("guards.spike=rollback", "eval.every=0", "checkpoint.every=16", "train.steps=18")
    run, code = run_with("spike@11", tmp_path, tiny_dataset, monkeypatch, *overrides, ranks=1)
    assert code == 0
    assert list(training(run)) == list(range(1, 19))
    assert len(events(run, "spike")) == 1 and not events(run, "rollback")


def test_a_loss_that_stays_spoilt_ends_the_run(tiny_dataset, tmp_path, monkeypatch, capfd):
    faults = " ".join(f"nan@{step}" for step in range(5, 9))
    run, code = run_with(faults, tmp_path, tiny_dataset, monkeypatch, "guards.max_skips=2", ranks=1)
    assert code == 1
    assert "3 steps in a row were left out" in capfd.readouterr().err
    assert newest(run / "checkpoints").step == 4
    (exit_note,) = (run / "exits").glob("*/rank-0.json")
    assert json.loads(exit_note.read_text())["kind"] == "failed"


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_not_the_run(tiny_dataset, tmp_path, monkeypatch):
    run, code = run_with("disk@8/1", tmp_path, tiny_dataset, monkeypatch, "checkpoint.keep=9", "eval.every=0")
    assert code == 0
    assert [c.step for c in CheckpointStore(run / "checkpoints").all()] == [4, 12, 16, 20]
    assert all(not c.problems() for c in CheckpointStore(run / "checkpoints").all())
    (failed,) = events(run, "save_failed")
    assert 8 <= failed["step"] <= 12 and "step 8 could not be written" in failed["problem"]
    assert not list((run / "checkpoints").glob(".writing-*"))
    assert list(training(run)) == list(range(1, 21))


@pytest.mark.parametrize("fault", ["clock@7", "clock@7/back"])
def test_a_clock_that_jumps_changes_nothing(fault, tiny_dataset, tmp_path, monkeypatch):
    overrides = ("train.steps=12", "eval.every=0", "watchdog.step_s=60", "checkpoint.minutes=60")
    run, code = run_with(fault, tmp_path, tiny_dataset, monkeypatch, *overrides, ranks=1)
    assert code == 0
    assert list(training(run)) == list(range(1, 13))
    assert [c.step for c in CheckpointStore(run / "checkpoints").all()] == [8, 12]


def test_a_rank_without_memory_says_so_first(tiny_dataset, tmp_path, monkeypatch, capfd):
    run, code = run_with("memory@6/1", tmp_path, tiny_dataset, monkeypatch, "eval.every=0")
    said = capfd.readouterr().err
    assert code == 1 and "rank 1 is out of memory" in said and "train.micro_batch" in said
    assert "Traceback" not in said
    note = json.loads((run / "exits" / "000001" / "rank-1.json").read_text())
    assert (note["kind"], note["step"]) == ("out of memory", 5)
    assert newest(run / "checkpoints").step == 4
