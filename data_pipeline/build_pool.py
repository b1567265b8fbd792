"""Runs the tasks of a build: in this process, or in worker processes that read tasks as lines and write files.

Workers are plain processes joined by two pipes: a line of JSON in, a line of JSON out, and no data. A worker whose
parent dies reads the end of its pipe and dies at once, so that a build that is killed leaves nobody writing.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_pipeline.build_plan import Plan, read_plan
from data_pipeline.encode import encode_range
from data_pipeline.errors import DataError, Interrupted
from data_pipeline.layout import write_shard
from data_pipeline.progress import Advance
from data_pipeline.spool import spool_part

#: A stage and its arguments, as JSON.
Task = list[Any]
_ROOT = Path(__file__).resolve().parents[1]


def run_task(plan: Plan, task: Task) -> tuple[int, int]:
    """Do one task; gives the documents and bytes that were handled. Raises DataError or OSError."""
    stage, *arguments = task
    if stage == "spool":
        return spool_part(plan, plan.parts[arguments[0]])
    if stage == "encode":
        return encode_range(plan, arguments[0], arguments[1])
    return write_shard(plan, arguments[0], arguments[1])


class Pool:
    """Does the tasks of one build after another; a context manager. Worker processes start when they are needed."""

    def __init__(self, plan: Plan, workers: int) -> None:
        self._plan, self._workers = plan, workers
        self._processes: list[subprocess.Popen[str]] = []

    def run(self, tasks: list[Task], advance: Advance) -> None:
        """Do all tasks, in any order, by the pool's processes (with one worker: by this process).

        Raises:
            DataError: a task failed (its own sentence), or a worker died.
            OSError: the disk, as the worker met it.
        """
        if self._workers == 1 or len(tasks) <= 1:
            for task in tasks:
                advance(*run_task(self._plan, task))
            return
        waiting = tasks[::-1]
        doing: dict[int, Task] = {}
        self._start(min(self._workers, len(tasks)))
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                assert process.stdout is not None
                selector.register(process.stdout, selectors.EVENT_READ, process)
                self._give(process, waiting, doing)
            while doing:
                for key, _ in selector.select():
                    process = key.data
                    self._take(process, doing, advance)
                    self._give(process, waiting, doing)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self, workers: int) -> None:
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "data_pipeline.build_worker", str(self._plan.directory.resolve())]
        while len(self._processes) < workers:
            self._processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": path},
                    text=True,
                )
            )

    def _give(self, process: subprocess.Popen[str], waiting: list[Task], doing: dict[int, Task]) -> None:
        if not waiting:
            return
        doing[process.pid] = waiting.pop()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(doing[process.pid]) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            self._died(process, doing[process.pid])

    def _take(self, process: subprocess.Popen[str], doing: dict[int, Task], advance: Advance) -> None:
        assert process.stdout is not None
        line = process.stdout.readline()
        task = doing.pop(process.pid, ["none"])
        if not line.endswith("\n"):
            self._died(process, task)
        answer = json.loads(line)
        if "errno" in answer:
            raise OSError(answer["errno"], answer["error"])
        if "error" in answer:
            raise (Interrupted if answer.get("kept") else DataError)(answer["error"])
        advance(answer["documents"], answer["bytes"])

    def _died(self, process: subprocess.Popen[str], task: Task) -> None:
        code = process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        raise WorkerDied(
            f"a worker of {self._plan.config.output} {how} at the task {' '.join(map(str, task))}: start the build "
            "again to go on from its finished parts, with fewer workers if memory was short."
        )

    def _stop(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.kill()
            process.wait()
            process.stdout.close()
            try:
                process.stdin.close()
            except BrokenPipeError:
                continue  # its last task was never read


class WorkerDied(Interrupted):
    """A worker process ended by itself."""


@lru_cache(maxsize=1)
def plan_of(directory: str) -> Plan:
    """The plan of a worker's directory, read once. Raises DataError or OSError."""
    return read_plan(Path(directory))
