"""Checkpoints by time and by validation loss, their mean, and the wish to stop as a file."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pretrain import metrics
from pretrain.checkpoint import CheckpointStore
from pretrain.inference import load
from tests.e2e.runs import pha, training, write_config

ALONE = ("train.zero_stage=1",)


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    """A run of one rank whose every second step is validated and kept by its loss."""
    folder = tmp_path_factory.mktemp("keeping")
    config = write_config(folder, tiny_dataset, folder / "run")
    rules = ("eval.every=2", "checkpoint.every=2", "checkpoint.keep=1", "checkpoint.keep_best=3")
    assert pha("train", config, *ALONE, "train.steps=10", *rules).returncode == 0
    return config, folder / "run"


def test_the_best_by_validation_are_kept_and_their_mean_is_written_and_evaluated(trained):
    _, run = trained
    checkpoints = CheckpointStore(run / "checkpoints").all()
    losses = {c.step: c.info().validation_loss for c in checkpoints}
    assert len(losses) == 3 and max(losses) == 10 and None not in losses.values()
    result = pha("average", run, "--best", 2, "--sequences", 16, "--json")
    assert result.returncode == 0, result.stderr
    made = json.loads(result.stdout)
    best = sorted(losses, key=losses.get)[:2]
    assert made["steps"] == best
    weights, parts = load_file(made["path"]), [load_file(c.weights) for c in checkpoints if c.step in best]
    for name, value in weights.items():
        torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2)
    model = load(run).model
    model.load_state_dict(weights)
    assert made["evaluations"][f"step {best[0]}"]["loss"] == pytest.approx(losses[best[0]], rel=1e-5)
    assert set(made["evaluations"]) == {"average", *(f"step {step}" for step in best)}


def test_each_checkpoint_is_told_with_what_it_took(trained):
    config, run = trained
    told = [r for r in metrics.read(run / "metrics.jsonl") if r.get("event") == "checkpoint"]
    assert [r["step"] for r in told] == [2, 4, 6, 8, 10]
    assert all(0 < r["stall_s"] <= r["seconds"] and 0 < r["commit_s"] < r["seconds"] for r in told)
    limits = ("checkpoint.grace_s=0.001", "train.steps=11", "checkpoint.every=1")
    result = pha("train", config, *ALONE, f"run_dir={shutil.copytree(run, run.with_name('slow'))}", *limits)
    assert "a stop leaves checkpoint.grace_s = 0.001 s" in " ".join(result.stderr.split())
    assert any(r.get("event") == "slow_save" for r in metrics.read(run.with_name("slow") / "metrics.jsonl"))


def test_more_than_there_are_cannot_be_averaged(trained):
    _, run = trained
    result = pha("average", run, "--best", 4)
    assert result.returncode == 2
    assert "3 complete checkpoint(s)" in result.stderr and "--best" in result.stderr


def test_a_file_named_stop_saves_ends_the_run_and_keeps_it_from_starting(trained, tiny_dataset, tmp_path):
    run = tmp_path / "run"
    config = write_config(tmp_path, tiny_dataset, run)
    timed = ("checkpoint.every=1000", "checkpoint.minutes=1e-9", "eval.every=0", "checkpoint.keep=99")
    assert pha("train", config, *ALONE, "train.steps=4", *timed).returncode == 0
    assert [c.step for c in CheckpointStore(run / "checkpoints").all()] == [1, 2, 3, 4], "one whenever the time is up"
    (run / "STOP").touch()
    refused = pha("train", config, *ALONE, "train.steps=6")
    assert refused.returncode == 2 and "remove that file" in refused.stderr
    (run / "STOP").unlink()
    assert pha("train", config, *ALONE, "train.steps=6").returncode == 0
    assert max(training(run)) == 6
