"""A build that several machines share: the tasks of a job array do its stages together, over a shared file system.

:func:`data_pipeline.build.prepare` makes the plan, and an :class:`Order` in the launch's folder tells the tasks what
they need. Each then runs :func:`work`: the same :class:`~data_pipeline.build_stages.Stages` as one machine, except that
it does the units of a stage that it can claim (:mod:`data_pipeline.claims`), and waits for those of others. So tasks
may come late, die, and come back; who is there does what is left, and the last stage publishes the dataset.

    OUTPUT.launch/000001/
      build.json            what tasks need to know
      tasks/NAME.json       a task's last sign of life: what it does, what it has done
      claims/               who does which unit
      end.json              how it ended
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.build import check_finished, explain
from data_pipeline.build_plan import Plan, Task, locked, read_plan, work_directory
from data_pipeline.build_plan import write_atomically as write
from data_pipeline.build_pool import Pool, result_of
from data_pipeline.build_stages import Stages
from data_pipeline.claims import CLAIMS, END, TASKS, Claims, Patience, end, read_object
from data_pipeline.errors import DataError, Interrupted
from data_pipeline.progress import Advance, BuildProgress
from data_pipeline.schema import BUILD_FILE
from data_pipeline.spool import SpoolTotals

ORDER = "build.json"
BUILT, FAILED = "built", "failed"
DONE, TRY_AGAIN, GIVEN_UP, STOPPED = 0, 1, 2, 75
"""Exit codes of a task: the dataset is there; failed, but another try may not; failed for all; asked to stop."""


@dataclass(frozen=True)
class Order:
    """What the tasks of a launch need to know; `workers` are the processes of each."""

    fingerprint: str
    output: str
    workers: int = 1
    patience: Patience = field(default_factory=Patience)

    def save(self, folder: Path) -> None:
        """Write it, and make the places that tasks meet in. Raises OSError."""
        for name in (CLAIMS, TASKS):
            (folder / name).mkdir(exist_ok=True)
        write(folder / ORDER, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Order:
        """Read what a launch has written. Raises DataError."""
        try:
            tree = json.loads((folder / ORDER).read_text(encoding="utf-8"))
            return cls(**{**tree, "patience": Patience(**tree["patience"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder} is no launch of a build ({error}): launch the build again.") from error


class Stopped(Exception):
    """The task was asked to stop, or to end because the build has."""


class Beat:
    """A task's sign of life, written by a thread of its own; a context manager."""

    def __init__(self, folder: Path, task: str, life: str, every_s: float) -> None:
        self.task, self._every_s = task, every_s
        self._path = folder / TASKS / f"{task}.json"
        before = int(read_object(self._path).get("done", 0))
        self._tree: dict[str, Any] = {"task": task, "life": life, "host": socket.gethostname(), "pid": os.getpid()}
        self._tree |= {"beat": 0, "units": [], "done": before, "stage": "", "state": "works", "words": ""}
        self._lock, self._writing, self._over = threading.Lock(), threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._go, args=(os.getppid(),), daemon=True)

    def say(self, **changes: Any) -> None:
        """Change what the file says, at once if it is the state. Raises OSError."""
        with self._lock:
            self._tree |= changes
        if "state" in changes:
            self._write()

    def count(self) -> None:
        """One more unit is done."""
        with self._lock:
            self._tree["done"] += 1

    def __enter__(self) -> Beat:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _go(self, parent: int) -> None:
        while not self._over.wait(self._every_s):
            if os.getppid() != parent:
                os._exit(TRY_AGAIN)  # whoever started the task was killed; Slurm may have started it elsewhere
            with suppress(OSError):  # the next one may get through
                self._write()

    def _write(self) -> None:
        with self._writing:  # an older text must not replace a newer one
            with self._lock:
                self._tree |= {"beat": self._tree["beat"] + 1, "time": time.time()}
                text = json.dumps(self._tree) + "\n"
            # Not synced: nobody needs it after a power cut, and a slow disk must not hold up the work.
            unfinished = self._path.with_name(f".{self._path.name}")
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(self._path)


class SharedStages(Stages):
    """The stages of a build, of which this task does what it can claim, and waits for the rest."""

    def __init__(
        self, plan: Plan, progress: BuildProgress, pool: Pool, claims: Claims, beat: Beat, check: Callable[[], None]
    ) -> None:
        """`check` is called often, and raises to end the work."""
        super().__init__(plan, progress, pool)
        self.claims, self.beat, self.check = claims, beat, check

    def _do(self, name: str, tasks: list[Task], total: int | None = None, until: Path | None = None) -> None:
        self.beat.say(stage=name)
        with self.progress.phase(name, total) as advance:
            self.pool.work(_Claimed(self, tasks, advance, until), self.claims.patience.poll_s)

    def _overlaps(self, ranges: int) -> None:
        self._do("compare", [["overlaps", ranges]])

    def _tokenizer(self, totals: SpoolTotals, ranges: int) -> None:
        self._do("train tokenizer", [["tokenizer", ranges]])

    def _layout(self, ranges: int) -> None:
        self._do("layout", [["layout", ranges]])

    def _publish(self, fingerprint: str) -> None:
        self._do("publish", [["publish", fingerprint]])


class _Claimed:
    """Feeds a pool with the tasks of a stage that can be claimed, until all of them are finished by somebody."""

    def __init__(self, stages: SharedStages, tasks: list[Task], advance: Advance, until: Path | None) -> None:
        self._stages, self._claims, self._advance, self._until = stages, stages.claims, advance, until
        self._places = {_unit(task): result_of(stages.plan, task) for task in tasks}
        self._tasks = {_unit(task): task for task in tasks}

    def look(self) -> None:
        self._stages.check()

    def take(self) -> Task | None:
        self._drop_finished()
        unit = self._claims.take(self._tasks)
        self._tell()
        return None if unit is None else self._tasks[unit]

    def over(self) -> bool:
        self._drop_finished()
        return not self._tasks

    def done(self, task: Task, documents: int, bytes_: int) -> None:
        self._advance(documents, bytes_)
        self._claims.done(_unit(task))
        self._stages.beat.count()
        self._tell()

    def failed(self, task: Task, error: DataError | OSError) -> None:
        self._stages.check()  # a worker that dies because all must stop has not failed
        unit = _unit(task)
        if self._places[unit].exists() or self._past():  # somebody else took us for dead, did it, and went on
            self._claims.done(unit)
            return
        if isinstance(error, DataError) and not isinstance(error, Interrupted):
            raise error
        words = str(error) if isinstance(error, DataError) else str(error.strerror or error)
        self._stages.progress.say(f"the unit {unit} has failed: {words}")
        self._stages.beat.say(words=words)
        self._claims.fail(unit, words)

    def _past(self) -> bool:
        return self._until is not None and self._until.exists()

    def _drop_finished(self) -> None:
        """By one listing of each directory: looking for thousands of results one by one takes a network its time."""
        held = set(self._claims.units())
        if self._past():
            self._tasks = {unit: task for unit, task in self._tasks.items() if unit in held}
            return
        there = {parent: _names(parent) for parent in {place.parent for place in self._places.values()}}
        for unit in [u for u in self._tasks if u not in held]:
            if self._places[unit].name in there[self._places[unit].parent]:
                del self._tasks[unit]

    def _tell(self) -> None:
        self._stages.beat.say(units=self._claims.units())


def _unit(task: Task) -> str:
    """A task's name among the claims: its stage, and what tells it from the stage's other tasks."""
    stage, *arguments = task
    if (len(arguments) == 2 and stage != "shard") or stage == "spool":
        return f"{stage}-{arguments[0]:05d}"
    return f"{stage}-{arguments[0]}-{arguments[1]:06d}" if stage == "shard" else str(stage)


def _names(directory: Path) -> set[str]:
    try:
        return set(os.listdir(directory))  # noqa: PTH208 - thousands of names, and no object for each
    except FileNotFoundError:
        return set()


def work(folder: Path, task: str, stop: threading.Event, progress: bool = True) -> int:
    """A task's whole work at the build of a launch: until the dataset is there, or the build has failed.

    Args:
        folder: the launch's.
        task: a name that no other living task has; one that is started again keeps it, and takes up what it held.
        stop: to be set when the task is to let go of its work and end.

    Returns an exit code: :data:`DONE`, :data:`TRY_AGAIN`, :data:`GIVEN_UP` or :data:`STOPPED`. The reason is in the
    task's file, and in ``end.json`` if it holds for all.
    """
    order = Order.load(folder)
    shown, life = BuildProgress(progress), uuid.uuid4().hex
    claims = Claims(folder, task, life, order.patience)
    with Beat(folder, task, life, order.patience.beat_s) as beat:
        try:
            code, words = _work(folder, order, claims, beat, stop, shown)
        except OSError as error:
            code, words = TRY_AGAIN, str(explain(error, Path(order.output)))
        except Interrupted as error:
            code, words = TRY_AGAIN, str(error)
        except DataError as error:
            end(folder, FAILED, str(error), task)
            code, words = GIVEN_UP, str(error)
        beat.say(state={STOPPED: "stopped", DONE: "done"}.get(code, "failed"), words=words, units=[])
    shown.say(words)
    return code


def _work(
    folder: Path, order: Order, claims: Claims, beat: Beat, stop: threading.Event, shown: BuildProgress
) -> tuple[int, str]:
    """An exit code and the reason. Raises DataError, OSError."""

    def check() -> None:
        if stop.is_set() or (folder / END).exists():
            raise Stopped

    output = Path(order.output)
    directory = work_directory(output)
    try:
        check()
        if not is_built(order):
            with (
                locked(directory, "shared", where_possible=True),
                Pool(read_plan(directory), order.workers) as pool,
            ):
                SharedStages(pool.plan, shown, pool, claims, beat, check).all_stages(order.fingerprint, finish=False)
    except Stopped:
        claims.release()
    except (OSError, DataError):
        if not is_built(order):  # else: the work directory went away under us because all is done
            raise
    if is_built(order):
        with suppress(DataError, OSError):  # the last one to leave can
            check_finished(output, order.fingerprint)
        end(folder, BUILT, f"{output} is built.", beat.task)
        return DONE, f"{output} is built."
    ended = read_object(folder / END)
    if ended:
        return GIVEN_UP, f"the build has failed in task {ended.get('task')}: {ended.get('words')}"
    return STOPPED, "stopped on request; what was not finished is free for others."


def is_built(order: Order) -> bool:
    """Whether the dataset of a launch is at its place."""
    return read_object(Path(order.output) / BUILD_FILE).get("fingerprint") == order.fingerprint
