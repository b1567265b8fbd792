"""A run goes on with other ranks, or under another ZeRO stage, as if nothing had changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pretrain.checkpoint import Checkpoint, CheckpointStore
from tests.e2e.runs import CONFIG, start, training, wait_for, write_config

# Without dropout, whose numbers are drawn by each rank for itself. 12 sequences divide by 1, 2, 3 and 4 ranks.
ELASTIC = (
    CONFIG.replace("dropout: 0.1", "dropout: 0")
    .replace("steps: 14, global_batch: 8, micro_batch: 2, zero_stage: 2", "steps: 28, global_batch: 12")
    .replace("every: 4, keep: 2", "every: 8, keep: 4")
    .replace("eval: {every: 6", "eval: {every: 0")
)
BEGINS = 8
"""The step of the checkpoint that is taken up; 20 follow."""


@pytest.fixture(scope="module")
def config(tiny_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elastic")
    return write_config(folder, tiny_dataset, folder / "run", ELASTIC)


@pytest.fixture(scope="module")
def reference(config):
    """Two ranks at stage 1, undisturbed."""
    run = config.parent / "run"
    assert start(run, config, "train.zero_stage=1").wait() == 0
    return run


def go_on(run: Path, config: Path, to: Path, ranks: int, stage: int, at: int = BEGINS) -> Path:
    """A copy of a run that goes on from the checkpoint of step `at`."""
    shutil.copytree(run, to)
    for checkpoint in CheckpointStore(to / "checkpoints").all():
        if checkpoint.step != at:
            shutil.rmtree(checkpoint.path)
    assert start(to, config, f"run_dir={to}", f"train.zero_stage={stage}", ranks=ranks).wait() == 0
    return to


def assert_like(run: Path, reference: Path, after: int = BEGINS) -> None:
    ours, theirs = training(run), training(reference)
    assert list(ours) == list(theirs)
    first, last = after + 1, max(theirs)
    assert ours[first][0] == pytest.approx(theirs[first][0], rel=1e-6)
    assert ours[last][0] == pytest.approx(theirs[last][0], rel=1e-4)
    assert [rate for _, _, rate in ours.values()] == [rate for _, _, rate in theirs.values()]


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (3, 1), (4, 2), (2, 3)])
def test_other_ranks_and_stages_go_on_alike(reference, config, tmp_path, ranks, stage):
    run = go_on(reference, config, tmp_path / "run", ranks, stage)
    assert_like(run, reference)
    if stage == 3:  # and from there to fewer shards, and back to whole ones
        again = go_on(run, config, tmp_path / "again", 3, 2, at=16)
        assert_like(again, reference, after=16)
    if stage == 0:
        again = go_on(run, config, tmp_path / "again", 2, 1, at=16)
        assert_like(again, reference, after=16)


def test_a_kill_in_the_conversion_leaves_nothing_in_the_way(reference, config, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    arguments = (config, f"run_dir={run}", "train.zero_stage=2", "train.steps=30")
    with start(run, *arguments, ranks=1) as job:
        wait_for(job, lambda: any((run / "checkpoints").glob(".writing-*.elastic")))
        job.kill()
    assert start(run, *arguments, ranks=1).wait() == 0
    assert max(training(run)) == 30
    kept = run / "checkpoints" / "step-00000028.elastic"
    assert Checkpoint(kept).problems() == []
