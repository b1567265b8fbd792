"""`pha launch` on a real Slurm of four nodes: ranks and nodes die, the run does not."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from cluster.run_files import events
from pretrain.checkpoint import newest
from pretrain.files import sha256
from tests.e2e.runs import start, training, write_config
from tests.slurm import bed

PATIENCE_S = 150.0


@pytest.fixture(scope="module")
def folder(shared, tiny_dataset):
    """A folder that all nodes see, with the dataset in it."""
    shutil.copytree(tiny_dataset, shared / "data")
    write_config(shared, shared / "data", shared / "reference")
    return shared


def launch(folder, run, *overrides):
    """Launches on the login host; returns the job's number."""
    text = bed.told(
        sys.executable, "-m", "pretrain.cli", "launch", str(folder / "run.yaml"), f"run_dir={run}", *overrides
    )
    return next(word for line in text.splitlines() if line.startswith("job ") for word in line.split()[1:2])


@pytest.fixture(scope="module")
def undisturbed(folder):
    """The same run on two ranks of this machine."""
    assert start(folder / "reference", folder / "run.yaml", *LONG).wait() == 0
    return folder / "reference"


# All nodes share the cores of one machine: which of them computes slowly is chance.
LONG = ("train.steps=120", "eval.every=0", "watchdog.step_s=10", "checkpoint.every=8", "cluster.slow_node=0")


def wait(condition, words):
    bed.wait_until(condition, PATIENCE_S, words)


def ended(run):
    return [e for e in events(run) if e["event"] == "end"]


def jobs_left():
    return bed.told("squeue", "-h", "-o", "%i").split()


def test_a_killed_rank_and_a_lost_node_cost_two_starts_and_no_bit(folder, undisturbed):
    run = folder / "lost"
    launch(folder, run, *LONG, "cluster.nodes=2", "cluster.spare_nodes=1", "cluster.time=20:00")
    wait(lambda: 10 in training(run), "step 10")
    first = next(e for e in events(run) if e["event"] == "start")
    victim = first["nodes"][1]
    bed.enter(victim, "pkill", "-9", "-f", "pretrain.cli train", check=True)
    wait(lambda: len(ended(run)) == 1, "the end of the first start")
    seen = max(training(run))
    wait(lambda: max(training(run)) > seen and len(list((run / "generations").glob("*"))) == 2, "the second start")
    bed.crash(victim)
    wait(lambda: len(ended(run)) == 3, "the end of the run")
    bed.boot(victim)
    assert [e["decision"] for e in ended(run)] == ["relaunch", "relaunch", "finish"]
    starts = [e for e in events(run) if e["event"] == "start"]
    assert victim not in starts[2]["nodes"] and starts[2]["ranks"] == 2, "the spare node took over"
    assert training(run) == training(undisturbed)
    assert sha256(newest(run / "checkpoints").weights) == sha256(newest(undisturbed / "checkpoints").weights)
    wait(lambda: not jobs_left(), "the end of the job")


def test_a_job_that_must_end_hands_over_to_a_successor_with_the_code_of_its_launch(folder, undisturbed):
    run = folder / "handed"
    wait(lambda: len(bed.idle()) >= 2, "two idle nodes")
    job = launch(folder, run, *LONG, "cluster.nodes=2", "cluster.time=20:00")
    frozen = run / "launch" / "000001"
    assert (frozen / "code" / "pretrain" / "run.py").is_file() and json.loads((frozen / "job.json").read_text())[
        "nodes"
    ] == 2
    wait(lambda: 10 in training(run), "step 10")
    bed.told("scancel", "--signal=USR1", "--batch", job)  # as Slurm does before the time limit
    wait(lambda: len(ended(run)) == 2, "the end of the run")
    first, _ = [e for e in events(run) if e["event"] == "successor"]  # the second one's was taken back
    assert first["after"] == job and [e["decision"] for e in ended(run)] == ["hand over", "finish"]
    assert training(run) == training(undisturbed)
    assert sha256(newest(run / "checkpoints").weights) == sha256(newest(undisturbed / "checkpoints").weights)


@pytest.mark.parametrize("how", ["pha cancel", "scancel"])
def test_a_cancelled_run_saves_and_nobody_follows_it(how, folder):
    run = folder / how
    wait(lambda: len(bed.idle()) >= 2, "two idle nodes")
    job = launch(folder, run, "train.steps=100000", "eval.every=0", "cluster.nodes=2", "cluster.time=20:00")
    wait(lambda: 5 in training(run), "step 5")
    with pytest.raises(RuntimeError, match=f"Job {job} trains"):
        launch(folder, run, "train.steps=100000", "eval.every=0", "cluster.nodes=2", "cluster.time=20:00")
    if how == "scancel":
        bed.told("scancel", job)
    else:
        said = bed.told(sys.executable, "-m", "pretrain.cli", "cancel", str(run))
        assert "asks the run to save and end" in said
    wait(lambda: not jobs_left(), "the end of the job")
    assert newest(run / "checkpoints").step == max(training(run))
    assert len([e for e in events(run) if e["event"] == "start"]) == 1


def test_a_preempted_run_saves_makes_room_and_goes_on_behind(folder, undisturbed):
    run = folder / "preempted"
    wait(lambda: len(bed.idle()) == 4, "idle nodes")
    job = launch(folder, run, *LONG, "cluster.nodes=2", "cluster.time=20:00")
    wait(lambda: 10 in training(run), "step 10")
    urgent = bed.told(
        "sbatch", "--parsable", "-p", "urgent", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2"
    )
    wait(lambda: len(ended(run)) == 2, "the end of the run")
    first, _ = [e for e in events(run) if e["event"] == "successor"]
    assert first["after"] == job != urgent.strip()
    assert training(run) == training(undisturbed)
    assert sha256(newest(run / "checkpoints").weights) == sha256(newest(undisturbed / "checkpoints").weights)


def test_the_first_node_takes_the_supervisor_with_it_and_the_job_that_waits_goes_on(folder, undisturbed):
    run = folder / "headless"
    wait(lambda: len(bed.idle()) == 4, "idle nodes")
    job = launch(folder, run, *LONG, "cluster.nodes=2", "cluster.time=20:00")
    wait(lambda: 10 in training(run), "step 10")
    head = next(e for e in events(run) if e["event"] == "start")["nodes"][0]
    bed.crash(head)
    wait(lambda: [e["decision"] for e in ended(run)][-1:] == ["finish"], "the end of the run")
    bed.boot(head)
    starts = [e for e in events(run) if e["event"] == "start"]
    assert len(starts) == 2 and starts[0]["job"] == job != starts[1]["job"] and head not in starts[1]["nodes"]
    assert training(run) == training(undisturbed)
    assert sha256(newest(run / "checkpoints").weights) == sha256(newest(undisturbed / "checkpoints").weights)
    wait(lambda: not jobs_left(), "the end of all jobs")
