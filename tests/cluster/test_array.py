"""The script of a job array and the supervisor of one of its tasks, with stand-ins for Slurm's commands."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import array
from cluster.array import ArrayJob
from cluster.errors import ClusterError
from tests.cluster.test_slurm import stand_in
from tests.e2e.runs import ROOT


def job(**changes) -> ArrayJob:
    known = ArrayJob(
        title="Builds /data/d; written by a test.", folder="/data/d.launch/000001", python="/env/bin/python",
        command=["-m", "work"], directives={"array": "1-8%4", "time": "12:00:00"}, modules=["python/3.11"],
        env={"HF_HOME": "/data/a b"}, lead_s=60, restarts=2, successors=1,
    )  # fmt: skip
    return dataclasses.replace(known, **changes)


def test_the_script_is_bash_and_says_what_was_asked_for():
    text = array.render(job())
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    assert "#SBATCH --array=1-8%4\n#SBATCH --time=12:00:00\n" in text and "#SBATCH --signal=B:USR1@60\n" in text
    assert "#SBATCH --requeue\n" in text and "export HF_HOME='/data/a b'\n" in text
    assert text.endswith("exec /env/bin/python -m cluster.array_task /data/d.launch/000001\n")


@given(st.text(max_size=30), st.text(max_size=30).filter(lambda text: "\0" not in text))
def test_nothing_of_a_config_reaches_the_shell_unquoted(name, value):
    try:
        text = array.render(job(env={"X": value}, directives={"job-name": name}, title=name, python=value or "p"))
    except ClusterError as error:
        assert "#SBATCH" in str(error)
        return
    directives, _, script = text.partition("set -eu\n")
    assert all(line.startswith("#") for line in directives.split("\n") if line)
    words = shlex.split(script, comments=True)
    assert f"X={value}" in words and words.count("exec") <= 1 + (value == "exec") * 2
    assert words[-3:] == ["-m", "cluster.array_task", "/data/d.launch/000001"]


def test_an_array_reads_back_what_it_wrote(tmp_path):
    job(folder=str(tmp_path)).save()
    assert ArrayJob.load(tmp_path) == job(folder=str(tmp_path))
    with pytest.raises(ClusterError, match="launch it again"):
        ArrayJob.load(tmp_path / "nowhere")
    with pytest.raises(ClusterError, match="is no task of a job array"):
        array.index_of("None_None")


def test_only_tasks_that_wait_or_run_count(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "squeue", "printf '17_1|RUNNING\\n17_2|COMPLETED\\n17_3|PENDING\\n'")
    assert array.states("17") == {"17_1": "RUNNING", "17_3": "PENDING"}
    stand_in(tmp_path, monkeypatch, "squeue", "echo 'error: Invalid job id specified' >&2; exit 1")
    assert array.states("17") == {}
    stand_in(tmp_path, monkeypatch, "squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(ClusterError, match="Unable to contact"):
        array.states("17")


WORK = """
import os, signal, sys, time
from pathlib import Path
folder, mode, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
lives = len(list(folder.glob("life-*"))) + 1
(folder / f"life-{lives}").write_text(name)
if mode == "dies-twice" and lives <= 2:
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "fails":
    sys.exit(2)
if mode == "waits":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / "ready").touch()
    time.sleep(60)
"""


@pytest.fixture
def supervise(tmp_path, monkeypatch):
    """mode → the supervisor of task 17_3 as a process."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "work.py").write_text(WORK)
    started = []

    def start(mode, **changes):
        command = [str(tmp_path / "work.py"), str(tmp_path), mode]
        job(folder=str(tmp_path), python=sys.executable, command=command, **changes).save()
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
        monkeypatch.setenv("SLURM_JOB_ID", "20")
        started.append(
            subprocess.Popen([sys.executable, "-m", "cluster.array_task", str(tmp_path)], cwd=ROOT, stderr=-3)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def happened(folder):
    return [(event["event"], event.get("code")) for event in array.events(folder)]


def test_a_killed_command_is_started_again_under_its_name(tmp_path, supervise):
    assert supervise("dies-twice").wait(60) == 0
    assert (tmp_path / "life-3").read_text() == "17_3"
    ends = [("end", -9), ("end", -9), ("end", 0)]
    assert happened(tmp_path) == [step for end in ends for step in (("start", None), end)]


def test_a_command_that_always_dies_uses_its_budget_up(tmp_path, supervise):
    assert supervise("dies", restarts=1).wait(60) == 1
    assert [event for event, _ in happened(tmp_path)] == ["start", "end", "start", "end", "given up"]


def test_what_no_task_can_mend_is_not_tried_again(tmp_path, supervise):
    assert supervise("fails").wait(60) == 2
    assert happened(tmp_path) == [("start", None), ("end", 2)]


def ready(folder):
    deadline = time.monotonic() + 60
    while not (folder / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "preempted", "pending", "last"),
    [
        (10, False, False, "successor"),  # USR1: the time limit
        (15, True, False, "successor"),  # TERM: room for another job
        (15, False, False, "rest"),  # TERM: scancel
        (10, False, True, "rest"),  # other tasks of the array wait and take the place
    ],
)
def test_who_follows_a_task_that_must_leave(tmp_path, monkeypatch, supervise, number, preempted, pending, last):
    stand_in(tmp_path, monkeypatch, "sbatch", f'echo "$@" > {tmp_path}/asked; echo 21')
    stand_in(tmp_path, monkeypatch, "squeue", f"printf '17_4|{'PENDING' if pending else 'RUNNING'}\\n'")
    stand_in(tmp_path, monkeypatch, "scontrol", f"echo PreemptTime={'2026-01-01T00:00:00' if preempted else 'None'}")
    process = supervise("waits")
    ready(tmp_path)
    process.send_signal(number)
    assert process.wait(60) == 0
    events = array.events(tmp_path)
    assert events[-1]["event"] == last and ("end", 75) in happened(tmp_path)
    if last == "successor":
        asked = (tmp_path / "asked").read_text().split()
        assert asked == ["--parsable", "--array=3", "--dependency=afterany:17_3", str(tmp_path / "job.sh")]
        assert array.jobs_of(tmp_path) == ["21"]


def test_successors_come_to_an_end(tmp_path, monkeypatch, supervise):
    stand_in(tmp_path, monkeypatch, "squeue", "true")
    (tmp_path / "tasks" / "15_3.jsonl").touch()  # job 17 is the one that may follow it
    process = supervise("waits")
    ready(tmp_path)
    process.send_signal(10)
    assert process.wait(60) == 1
    assert "all that cluster.successors allows" in array.events(tmp_path)[-1]["words"]


def test_tasks_run_the_copy_of_the_code_and_not_what_lies_where_they_were_launched():
    text = array.render(job())
    assert "export PYTHONPATH=/data/d.launch/000001/code\n" in text and "export PYTHONSAFEPATH=1\n" in text
