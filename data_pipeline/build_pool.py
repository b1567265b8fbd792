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
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from data_pipeline import compare
from data_pipeline.assemble import make_layout, publish
from data_pipeline.build_plan import Plan, Task, read_plan
from data_pipeline.encode import encode_range, make_tokenizer
from data_pipeline.errors import DataError, Interrupted
from data_pipeline.layout import write_shard
from data_pipeline.progress import Advance
from data_pipeline.schema import BUILD_FILE
from data_pipeline.shards import shard_name
from data_pipeline.spool import spool_part

_FIRST_PAUSE_S = 0.05
_ROOT = Path(__file__).resolve().parents[1]


def run_task(plan: Plan, task: Task) -> tuple[int, int]:
    """Do one task; gives the documents and bytes that were handled. Raises DataError or OSError."""
    stage, *arguments = task
    if stage == "spool":
        return spool_part(plan, plan.parts[arguments[0]])
    if stage == "encode":
        return encode_range(plan, arguments[0], arguments[1])
    if stage == "shard":
        return write_shard(plan, arguments[0], arguments[1])
    seen = [0, 0]

    def count(documents: int, bytes_: int) -> None:
        seen[0] += documents
        seen[1] += bytes_

    number, ranges = arguments[0], arguments[-1]
    work: dict[str, Callable[[], None]] = {
        "sketch": lambda: compare.sketch_range(plan, number, ranges, count),
        "near": lambda: compare.join_near(plan, number),
        "grams": lambda: compare.read_held_out(plan, number, ranges, count),
        "held-out": lambda: compare.unite_held_out(plan, number),
        "search": lambda: compare.search_range(plan, number, ranges, count),
        "overlaps": lambda: compare.make_overlaps(plan, number),
        "tokenizer": lambda: make_tokenizer(plan, number, count),
        "layout": lambda: make_layout(plan, number),
        "publish": lambda: publish(plan, number),
    }
    work[stage]()
    return seen[0], seen[1]


def result_of(plan: Plan, task: Task) -> Path:
    """What is there once a task is done, and never before."""
    stage, *arguments = task
    places = {
        "spool": lambda: plan.result("spool", arguments[0]),
        "encode": lambda: plan.result("encoded", arguments[0]),
        "shard": lambda: plan.result("shards", shard_name(arguments[0], arguments[1])),
        "sketch": lambda: compare.place(plan, compare.SKETCHES, arguments[0]),
        "near": lambda: compare.place(plan, compare.NEAR),
        "grams": lambda: compare.place(plan, compare.GRAMS, arguments[0]),
        "held-out": lambda: compare.place(plan, compare.HELD_OUT),
        "search": lambda: compare.place(plan, compare.SEARCHED, arguments[0]),
        "overlaps": lambda: compare.place(plan, compare.FOUND),
        "tokenizer": lambda: plan.result("tokenizer", "model"),
        "layout": lambda: plan.result("layout", "splits"),
        "publish": lambda: plan.config.output / BUILD_FILE,
    }
    return places[stage]()


class Feed(Protocol):
    """Where a pool gets its tasks from."""

    def look(self) -> None:
        """Called again and again; what it raises ends the pool's work."""

    def take(self) -> Task | None:
        """The next task; None if there is none at the moment, or none any more."""

    def over(self) -> bool:
        """Whether there will never be another one; asked when nothing is being done."""

    def done(self, task: Task, documents: int, bytes_: int) -> None:
        """A task has been done."""

    def failed(self, task: Task, error: DataError | OSError) -> None:
        """A task has failed, or its worker died. What this raises ends the pool's work; else it goes on."""


class Pool:
    """Does the tasks of one build after another; a context manager. Worker processes start when they are needed."""

    def __init__(self, plan: Plan, workers: int) -> None:
        self.plan, self._workers = plan, workers
        self._processes: list[subprocess.Popen[str]] = []
        self._selector = selectors.DefaultSelector()

    def run(self, tasks: list[Task], advance: Advance) -> None:
        """Do all tasks, in any order, by the pool's processes (with one worker: by this process).

        Raises:
            DataError: a task failed (its own sentence), or a worker died.
            OSError: the disk, as the worker met it.
        """
        if self._workers == 1 or len(tasks) <= 1:
            for task in tasks:
                advance(*run_task(self.plan, task))
            return
        self.work(_Listed(tasks, advance))

    def work(self, feed: Feed, poll_s: float | None = None) -> None:
        """Do what `feed` gives until it is over, always in worker processes; a dead one is replaced.

        Args:
            poll_s: ask again after so many seconds, or sooner, while there is a worker to spare; None if a feed that
                has nothing now will have nothing later.

        Raises what ``feed.failed`` and ``feed.look`` raise.
        """
        doing: dict[int, Task] = {}
        pause = _FIRST_PAUSE_S
        while True:
            feed.look()
            while len(doing) < self._workers and (task := feed.take()) is not None:
                self._give(self._idle(doing), task, doing, feed)
            if doing:
                pause = _FIRST_PAUSE_S
                for key, _ in self._selector.select(poll_s):
                    if key.data.pid in doing:
                        self._take(key.data, doing, feed)
            elif feed.over():
                return
            else:
                time.sleep(min(pause, poll_s or 0.0))  # short stages follow each other quickly
                pause *= 1.5

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for process in list(self._processes):
            self._end(process)
        self._selector.close()

    def _idle(self, doing: dict[int, Task]) -> subprocess.Popen[str]:
        """A worker that does nothing, perhaps a new one."""
        for process in self._processes:
            if process.pid not in doing:
                return process
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-m", "data_pipeline.build_worker", str(self.plan.directory.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )
        assert process.stdout is not None
        self._selector.register(process.stdout, selectors.EVENT_READ, process)
        self._processes.append(process)
        return process

    def _give(self, process: subprocess.Popen[str], task: Task, doing: dict[int, Task], feed: Feed) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            self._died(process, task, feed)
        else:
            doing[process.pid] = task

    def _take(self, process: subprocess.Popen[str], doing: dict[int, Task], feed: Feed) -> None:
        assert process.stdout is not None
        line = process.stdout.readline()
        task = doing.pop(process.pid)
        if not line.endswith("\n"):
            self._died(process, task, feed)
            return
        answer = json.loads(line)
        if "errno" in answer:
            feed.failed(task, OSError(answer["errno"], answer["error"]))
        elif "error" in answer:
            feed.failed(task, (Interrupted if answer.get("kept") else DataError)(answer["error"]))
        else:
            feed.done(task, answer["documents"], answer["bytes"])

    def _died(self, process: subprocess.Popen[str], task: Task, feed: Feed) -> None:
        code = process.wait()
        self._end(process)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        error = WorkerDied(
            f"a worker of {self.plan.config.output} {how} at the task {' '.join(map(str, task))}: start the build "
            "again to go on from its finished parts, with fewer workers if memory was short."
        )
        feed.failed(task, error)

    def _end(self, process: subprocess.Popen[str]) -> None:
        self._processes.remove(process)
        assert process.stdin is not None
        assert process.stdout is not None
        self._selector.unregister(process.stdout)
        process.kill()
        process.wait()
        process.stdout.close()
        try:
            process.stdin.close()
        except BrokenPipeError:
            return  # its last task was never read


class _Listed:
    """Tasks that are known beforehand; the first failure ends them."""

    def __init__(self, tasks: list[Task], advance: Advance) -> None:
        self._waiting, self._advance = tasks[::-1], advance

    def look(self) -> None:
        return

    def take(self) -> Task | None:
        return self._waiting.pop() if self._waiting else None

    def over(self) -> bool:
        return not self._waiting

    def done(self, task: Task, documents: int, bytes_: int) -> None:
        self._advance(documents, bytes_)

    def failed(self, task: Task, error: DataError | OSError) -> None:
        raise error


class WorkerDied(Interrupted):
    """A worker process ended by itself."""


@lru_cache(maxsize=1)
def plan_of(directory: str) -> Plan:
    """The plan of a worker's directory, read once. Raises DataError or OSError."""
    return read_plan(Path(directory))
