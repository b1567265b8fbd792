"""What a run is doing, read from its directory alone: no connection to the run is needed."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.run_files import checkpoint_steps, events, exit_notes, heartbeats, newest_start
from cluster.stragglers import stragglers


@dataclass(frozen=True)
class RankStatus:
    """One rank's last heartbeat."""

    rank: int
    host: str
    phase: str
    step: int
    age_s: float
    compute_s: float | None = None
    """Its own part of a step, before it meets the others."""


@dataclass(frozen=True)
class RunStatus:
    """A run's state as its files tell it."""

    run: str
    step: int
    steps: int
    loss: float | None
    tokens_per_s: float | None
    checkpoints: list[int]
    ranks: list[RankStatus]
    quarantined: int
    """Damaged blocks of data that were left out."""
    starts: int
    """How often the run was started."""
    exits: list[dict[str, Any]]
    """Why ranks of the newest start left, first cause first; empty while it runs, or where they were killed."""
    stragglers: list[str]
    """Ranks that hold the others up, in words; empty where none does, or it is not running."""
    ends: list[dict[str, Any]]
    """What a supervisor found at the ends of the last starts, and what it did; empty where none watches."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def read_status(run: Path) -> RunStatus:
    """Reads config, metrics, heartbeats and checkpoints. Raises ClusterError when `run` is no run directory."""
    config = run / "config.yaml"
    if not config.is_file():
        raise ClusterError(f"{run} is not a run directory (no config.yaml in it); give the folder of a run.")
    import yaml

    try:
        steps = int(yaml.safe_load(config.read_text(encoding="utf-8"))["train"]["steps"])
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError):
        raise ClusterError(
            f"{config} is not a run's config (it has no train.steps); give the folder of a run."
        ) from None
    last = _last_training_record(run / "metrics.jsonl")
    now, beats = time.time(), heartbeats(run)
    ranks = [
        RankStatus(b["rank"], b["host"], b["phase"], b["step"], now - b["time"], b["compute_s"]) for b in beats.values()
    ]
    return RunStatus(
        run=str(run),
        step=int(last.get("step", 0)),
        steps=steps,
        loss=last.get("loss"),
        tokens_per_s=last.get("tokens_per_s"),
        checkpoints=checkpoint_steps(run),
        ranks=sorted(ranks, key=lambda rank: rank.rank),
        quarantined=_quarantined(run / "quarantine.jsonl"),
        starts=(newest := newest_start(run)),
        exits=exit_notes(run, newest),
        stragglers=[one.words for one in stragglers(beats.values())],
        ends=[event for event in events(run) if event.get("event") != "start"][-5:],
    )


def _last_training_record(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        try:
            record: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:  # the last line may be in the middle of being written
            continue
        if record.get("kind") == "train":
            return record
    return {}


def _quarantined(path: Path) -> int:
    """Distinct blocks in `quarantine.jsonl`: two ranks that meet the same one both list it."""
    found = set()
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.add((record.get("dataset"), record.get("split"), record.get("block")))
    return len(found)
