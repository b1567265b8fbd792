"""The process that a task of a job array runs: `python -m cluster.array_task LAUNCH_FOLDER`.

It starts the task's command, and starts it again when that was killed or failed for itself alone. Before the time
limit, and when the job must make room, it lets the command free its work, and a task of the same index follows as a
job of its own. What it did is in `tasks/NAME.jsonl`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from cluster import slurm
from cluster.array import TASKS, ArrayJob, index_of, states
from cluster.errors import ClusterError
from cluster.job import SCRIPT
from cluster.policy import Budget

DONE, GIVEN_UP, STOPPED = 0, 2, 75
"""Exit codes of a command: all work is done; starting again is no use, for no task; stopped on request."""
LEAVE_S = 20.0
"""So long a command that was asked to stop may take."""
STEADY_S = 600.0
"""A command that lived for so long has its budget of restarts back."""


class TaskSupervisor:
    """Supervises one task."""

    def __init__(self, job: ArrayJob, task: str, budget: Budget | None = None) -> None:
        """Of the task of this name, JOB_INDEX."""
        self.job, self.task, self.index = job, task, index_of(task)
        self.budget = budget or Budget(job.restarts)
        self.wish: int | None = None
        self._asked = threading.Event()
        self._record = Path(job.folder) / TASKS / f"{task}.jsonl"

    def go(self) -> int:
        """Runs the command until its work is over or this task must leave; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        failures = 0
        while True:
            began = time.monotonic()
            code = self._run()
            lived = time.monotonic() - began
            words = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
            self.record("end", code=code, words=words, seconds=round(lived, 1))
            if code in (DONE, GIVEN_UP):
                return code
            if code == STOPPED:
                self._asked.wait(1.0)  # what asks the command may ask this process a moment later
            if self.wish is not None:
                return self._leave()
            failures = 1 if lived >= STEADY_S else failures + 1
            if failures > self.budget.relaunches:
                self.record("given up", words=f"{failures} times in a row the task {words}; its budget is spent.")
                return 1
            if self._asked.wait(self.budget.pause(failures)):
                return self._leave()

    def record(self, event: str, **values: Any) -> None:
        """Adds a line to the task's record, and to its log."""
        line = json.dumps({"event": event, "time": time.time(), "host": socket.gethostname(), **values})
        print(f"task {self.task}: {event} {values.get('words', '')}", file=sys.stderr, flush=True)
        try:
            with self._record.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError:  # a full disk must not end what keeps the task alive
            return

    def _run(self) -> int:
        self.record("start")
        # In a session of its own: a signal to the batch step's group goes to this process, which decides.
        command = [self.job.python, *self.job.command, self.task]
        child = subprocess.Popen(command, start_new_session=True)
        while (code := child.poll()) is None:
            if self._asked.wait(0.2):
                child.terminate()
                try:
                    return child.wait(LEAVE_S)
                except subprocess.TimeoutExpired:
                    child.kill()
                    return child.wait()
        return code

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.wish = self.wish or number
        self._asked.set()

    def _leave(self) -> int:
        """Ends the task; another job follows unless somebody cancelled it, or others of the array wait anyway."""
        number = self.task.partition("_")[0]
        try:
            if self.wish != signal.SIGUSR1 and not slurm.preempted(os.environ.get("SLURM_JOB_ID", number)):
                self.record(
                    "rest", words="The task was ended, by scancel or by Slurm, which requeues what it takes off itself."
                )
                return 0
            if any(state == "PENDING" for state in states(number).values()):
                self.record("rest", words="Other tasks of the array wait for a place, and take this one's.")
                return 0
            followed = len(list(self._record.parent.glob(f"*_{self.index}.jsonl")))
            if followed > self.job.successors:
                words = f"{followed - 1} jobs have followed this task, which is all that cluster.successors allows."
                self.record("rest", words=words)
                return 1
            self.record("successor", job=self._successor())
        except ClusterError as error:
            self.record("rest", words=f"Nobody follows this task: {error}")
            return 1
        return 0

    def _successor(self) -> str:
        after = f"--dependency=afterany:{self.task}"
        script = str(Path(self.job.folder) / SCRIPT)
        return (
            slurm.patiently(["sbatch", "--parsable", f"--array={self.index}", after, script]).strip().partition(";")[0]
        )


def main() -> None:
    """Supervises the task that this process is in; a problem is one sentence on standard error."""
    try:
        job = ArrayJob.load(Path(sys.argv[1]))
        task = f"{os.environ.get('SLURM_ARRAY_JOB_ID')}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
        code = TaskSupervisor(job, task).go()
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = GIVEN_UP
    raise SystemExit(code)


if __name__ == "__main__":
    main()
