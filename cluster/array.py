"""Slurm job arrays whose tasks share work through a folder: what one is, its script, and what becomes of it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import slurm
from cluster.errors import ClusterError
from cluster.job import JOB

TASKS, SUBMITTED = "tasks", "submitted.json"


@dataclass(frozen=True)
class ArrayJob:
    """An array of tasks that all run one command."""

    title: str
    """What the tasks do together, for who reads the script."""
    folder: str
    """This launch's own, absolute: job.json, config.yaml, job.sh, code/, tasks/, logs/."""
    python: str
    command: list[str]
    """What follows the interpreter; each task adds its name."""
    directives: dict[str, str]
    """Options of sbatch, by name."""
    modules: list[str]
    env: dict[str, str]
    lead_s: int
    """So long before the time limit a task lets go of its work, and a successor is submitted."""
    restarts: int
    """How often in a row a task's process is started again."""
    successors: int
    """How many jobs may follow one task."""

    def save(self) -> None:
        """Writes job.json into its folder."""
        text = json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"
        (Path(self.folder) / JOB).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ArrayJob:
        """Reads a folder's job.json. Raises ClusterError."""
        try:
            return cls(**json.loads((folder / JOB).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ClusterError(f"{folder} holds no array that can be read ({error}); launch it again.") from None


def render(job: ArrayJob) -> str:
    """The sbatch script: one file that a person can read. Raises ClusterError."""
    return slurm.script(
        job,
        job.title,
        [
            "# So long before its limit a task lets go of its work; Slurm may ask for it up to a minute earlier.",
            f"#SBATCH --signal=B:USR1@{job.lead_s}",
            "# A task whose node is lost, or that was taken off for another job, comes back by itself.",
            "#SBATCH --requeue",
        ],
        [],
        "cluster.array_task",
    )


def states(number: str) -> dict[str, str]:
    """The tasks of an array that wait or run: `17_2` → PENDING. Raises ClusterError if the controller is silent."""
    try:
        told = slurm.command(["squeue", "--noheader", "--array", f"--jobs={number}", "--format=%F_%K|%T"])
    except ClusterError as error:
        if "Invalid job id" in str(error):  # long over
            return {}
        raise
    pairs = (line.strip().partition("|") for line in told.splitlines())
    return {task: state for task, _, state in pairs if state in slurm.LIVE}


def jobs_of(folder: Path) -> list[str]:
    """The numbers of all jobs of a launch: the array, and those that followed its tasks."""
    found = []
    with suppress(OSError, ValueError, KeyError):
        found.append(str(json.loads((folder / SUBMITTED).read_text(encoding="utf-8"))["job"]))
    return found + [str(event["job"]) for event in events(folder) if event.get("event") == "successor"]


def events(folder: Path) -> list[dict[str, Any]]:
    """What the supervisors of a launch's tasks have recorded, by time."""
    found = [event for path in (folder / TASKS).glob("*.jsonl") for event in _lines(path)]
    return sorted(found, key=lambda event: float(event.get("time", 0.0)))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # in the middle of being written
            continue
        yield {"task": path.stem, **event}


def index_of(task: str) -> str:
    """`17_2` → 2. Raises ClusterError."""
    match = re.fullmatch(r"\d+_(\d+)", task)
    if match is None:
        raise ClusterError(f"{task} is no task of a job array; this runs inside a job that was submitted as one.")
    return match.group(1)
