"""Ranks that torchrun starts, on a real Slurm: signals, deaths and logs are as where srun starts them."""

from __future__ import annotations

import shutil
import sys

import pytest

from cluster.run_files import events
from pretrain.checkpoint import newest
from tests.e2e.runs import training, write_config
from tests.slurm import bed

BED = {"nodes": 2}


@pytest.fixture(scope="module")
def folder(shared, tiny_dataset):
    """A folder that all nodes see, with the dataset in it."""
    shutil.copytree(tiny_dataset, shared / "data")
    return shared


def wait(condition, words):
    bed.wait_until(condition, 150.0, words)


def ended(run):
    return [e for e in events(run) if e["event"] == "end"]


def test_a_killed_rank_is_started_again_and_a_warning_saves_and_is_followed(folder):
    run = folder / "run"
    config = write_config(folder, folder / "data", run)
    settings = ("train.steps=100000", "eval.every=0", "checkpoint.every=8", "cluster.launcher=torchrun")
    place = ("cluster.nodes=2", "cluster.time=20:00")
    said = bed.told(sys.executable, "-m", "pretrain.cli", "launch", str(config), *settings, *place)
    job = said.split("job ")[1].split()[0]
    wait(lambda: 10 in training(run), "step 10")
    victim = next(e for e in events(run) if e["event"] == "start")["nodes"][1]
    agents = bed.enter(victim, "pgrep", "-f", "torch.distributed.run", capture_output=True).stdout.split()
    assert agents, "torchrun is there"
    bed.enter(victim, "pkill", "-9", "-f", "^[^ ]*python[^ ]* -m pretrain.cli train", check=True)
    wait(lambda: len(ended(run)) == 1, "the end of the first start")
    assert ended(run)[0]["decision"] == "relaunch"
    seen = max(training(run))
    wait(lambda: max(training(run)) > seen and (run / "generations" / "000002.json").exists(), "the second start")
    words = bed.told(sys.executable, "-m", "pretrain.cli", "logs", str(run), "--lines", "9999")
    # the second rank says nothing while all is well, and what is empty is not shown
    assert all((run / "logs" / "start-000002" / f"rank-{rank}.out").exists() for rank in (0, 1))
    assert "start-000002/rank-0.out" in words and f"step {seen + 1}/" in words
    bed.told("scancel", "--signal=USR1", "--batch", job)  # as Slurm does before the time limit
    wait(lambda: len(ended(run)) == 2, "the end of the second start")
    assert any(e["event"] == "successor" for e in events(run))
    assert [e["decision"] for e in ended(run)] == ["relaunch", "hand over"]
    assert ended(run)[1]["cause"]["kind"] == "stopped"
    assert newest(run / "checkpoints").step == max(training(run))
    (run / "STOP").touch()
    bed.told("scancel", *bed.told("squeue", "-h", "-o", "%i").split())
