"""How far a build is that a job array does, told by its files alone."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.assemble import read_totals
from data_pipeline.build_array import BUILT, FAILED, Order, is_built
from data_pipeline.build_plan import Plan, read_plan, work_directory
from data_pipeline.build_pool import result_of
from data_pipeline.claims import CLAIMS, END, TASKS, read_object
from data_pipeline.compare import compare_stages
from data_pipeline.errors import DataError
from data_pipeline.spool import range_count, spool_totals

#: In `BuildStatus.state`, beside the two of ``end.json``.
UNFINISHED = "unfinished"


@dataclass(frozen=True)
class StageStatus:
    """`done` of the `total` units of a stage; the total is not known before the stages ahead of it are done."""

    name: str
    done: int
    total: int | None


@dataclass(frozen=True)
class TaskStatus:
    """A task's last sign of life, `age_s` old; `state` is works, waits, silent, stopped, failed or done."""

    task: str
    host: str
    state: str
    stage: str
    units: tuple[str, ...]
    done: int
    age_s: float
    words: str


@dataclass(frozen=True)
class BuildStatus:
    """A launch as its files tell it; `errors` are what failed, the first one first."""

    output: str
    launch: str
    state: str
    words: str
    stages: tuple[StageStatus, ...]
    tasks: tuple[TaskStatus, ...]
    errors: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def read_build_status(folder: Path) -> BuildStatus:
    """The status of the launch in this folder. Raises DataError if it is none."""
    order = Order.load(folder)
    ended = read_object(folder / END)
    tasks = tuple(_task(path, order.patience.silent_s) for path in sorted((folder / TASKS).glob("*.json")))
    state = BUILT if is_built(order) else FAILED if ended.get("outcome") == FAILED else UNFINISHED
    try:
        stages = _stages(read_plan(work_directory(Path(order.output))))
    except (OSError, DataError):  # it is gone once all is built
        stages = ()
    return BuildStatus(
        output=order.output,
        launch=str(folder),
        state=state,
        words=str(ended.get("words", "")),
        stages=stages,
        tasks=tasks,
        errors=_errors(folder, ended),
    )


def _task(path: Path, silent_s: float) -> TaskStatus:
    tree = read_object(path)
    age = time.time() - float(tree.get("time", 0.0))
    state, units = str(tree.get("state", "")), tuple(map(str, tree.get("units", ())))
    if state == "works":
        state = "silent" if age > silent_s else "works" if units else "waits"
    return TaskStatus(
        task=path.stem,
        host=str(tree.get("host", "")),
        state=state,
        stage=str(tree.get("stage", "")),
        units=units,
        done=int(tree.get("done", 0)),
        age_s=round(age, 1),
        words=str(tree.get("words", "")),
    )


def _stages(plan: Plan) -> tuple[StageStatus, ...]:
    read = _count(plan, "spool")
    ranges = shards = None
    if read == len(plan.parts):
        ranges = range_count(plan, spool_totals(plan))
    if (plan.directory / "layout" / "splits").exists():
        shards = sum(int(total["shards"]) for total in read_totals(plan)["splits"].values())
    compared = int((plan.directory / "overlaps" / "found").exists())
    return (
        StageStatus("read", read, len(plan.parts)),
        *(() if ranges is None or compared else _comparing(plan, ranges)),
        StageStatus("compare", compared, 1),
        StageStatus("train tokenizer", _count(plan, "tokenizer"), 1),
        StageStatus("encode", _count(plan, "encoded"), ranges),
        StageStatus("layout", _count(plan, "layout"), 1),
        StageStatus("write shards", _count(plan, "shards"), shards),
    )


def _comparing(plan: Plan, ranges: int) -> list[StageStatus]:
    """The stages before the last one that compares; what they leave is gone once that is done."""
    return [
        StageStatus(name, sum(result_of(plan, task).exists() for task in tasks), len(tasks))
        for name, tasks in compare_stages(plan.config.clean, ranges)
    ]


def _count(plan: Plan, stage: str) -> int:
    try:
        return sum(1 for name in os.listdir(plan.directory / stage) if ".tmp-" not in name)  # noqa: PTH208
    except OSError:
        return 0


def _errors(folder: Path, ended: dict[str, Any]) -> tuple[str, ...]:
    found: list[tuple[float, str]] = []
    for path in (folder / CLAIMS).glob("*.failed"):
        claim = read_object(path)
        try:
            found.append((path.stat().st_mtime, f"task {claim.get('task')}: {claim.get('words')}"))
        except OSError:
            continue
    if ended.get("outcome") == FAILED:
        found.append((float(ended.get("time", 0.0)), f"task {ended.get('task')}: {ended.get('words')}"))
    return tuple(dict.fromkeys(words for _, words in sorted(found)))
