"""How far a run has come, how fast, and what its wall time went into: from its records alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from cluster.run_files import events as supervised

RECENT = 20
"""Records whose median says how fast it is now."""


@dataclass(frozen=True)
class Progress:
    """Of a run of so many `steps`."""

    step: int
    steps: int
    tokens: int
    """That the weights have seen."""
    loss: float | None
    tokens_per_s: float | None
    eta_s: float | None
    """[s] Of training that are left at the pace of the last records."""
    wall_s: float
    """[s] Between the first start and the last record, or now while it runs."""
    parts_s: dict[str, float]
    """[s] What of that went into steps that count, steps that were taken twice, starts, and waits for checkpoints."""

    @property
    def goodput(self) -> float | None:
        """The share of the wall time in which steps were taken that count; None before there are any."""
        return min(1.0, self.parts_s["steps"] / self.wall_s) if self.wall_s > 0 else None


def read_progress(run: Path, steps: int, now: float | None) -> Progress:
    """Reads metrics.jsonl and metrics.superseded.jsonl; `now` is the clock where the run is not at rest."""
    records = list(_records(run / "metrics.jsonl"))
    trained = [r for r in records if r.get("kind") == "train"]
    events = [r for r in records if r.get("kind") == "event"]
    again = [r for r in _records(run / "metrics.superseded.jsonl") if r.get("kind") in ("train", "event")]
    last = trained[-1] if trained else {}
    times = [float(r["time"]) for r in (*records, *again) if "time" in r]
    ends = now if now is not None else max(times, default=0.0)
    pace = [seconds / count for count, seconds in _windows(trained[-RECENT - 1 :])]
    step = int(last.get("step", 0))
    return Progress(
        step=step,
        steps=steps,
        tokens=int(last.get("tokens_seen", 0)),
        loss=last.get("loss"),
        tokens_per_s=last.get("tokens_per_s"),
        eta_s=(steps - step) * statistics.median(pace) if len(pace) > 2 else None,
        wall_s=max(0.0, ends - min([*times, *_began(run, events)], default=ends)),
        parts_s={
            "steps": sum(seconds for _, seconds in _windows(trained)),
            "steps taken twice": sum(seconds for _, seconds in _windows([r for r in again if r["kind"] == "train"])),
            "starts": sum(_startup(r) for r in (*events, *again)),
            "waits for checkpoints": sum(float(r.get("stall_s", 0.0)) for r in events),
        },
    )


def _windows(trained: list[dict[str, Any]]) -> Iterator[tuple[int, float]]:
    """(Steps, seconds) from each record to the next: a record tells the rate since the one before it."""
    for one, two in pairwise([{}, *trained]):
        steps = int(two["step"]) - int(one.get("step", int(two["step"]) - 1))
        tokens = two.get("tokens_seen", 0) - one.get("tokens_seen", two.get("tokens_seen", 0) - two.get("tokens", 0))
        if steps > 0 and tokens > 0 and two.get("tokens_per_s"):
            yield steps, tokens / two["tokens_per_s"]


def _began(run: Path, records: list[dict[str, Any]]) -> Iterator[float]:
    """When the run's first processes began: before their first record, and after the first job's own beginning."""
    yield from (float(event["time"]) for event in supervised(run)[:1] if "time" in event)
    for record in records:
        if record.get("event") == "startup" and "time" in record:
            yield float(record["time"]) - sum(map(float, record.get("seconds", {}).values()))
            return


def _startup(record: dict[str, Any]) -> float:
    if record.get("event") != "startup":
        return 0.0
    return sum(float(seconds) for name, seconds in record.get("seconds", {}).items() if name != "first step")


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:  # the last line may be in the middle of being written
                continue
            if isinstance(record, dict):
                yield record
