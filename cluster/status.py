"""What a run is doing, read from its directory alone: no connection to the run is needed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.job import CONFIG, FOLDER
from cluster.outlook import look_out
from cluster.progress import Progress, read_progress
from cluster.run_files import (
    MARKER,
    checkpoint,
    checkpoint_steps,
    events,
    exit_notes,
    heartbeats,
    is_whole,
    newest_start,
)
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
    state: str
    """In a word: see `cluster.outlook`."""
    next: str
    """What happens next, in a sentence."""
    progress: Progress
    checkpoints: list[int]
    whole: int | None
    """The newest checkpoint whose files are all there in the sizes of its sealed manifest; None where there is none."""
    saved_s: float | None
    """[s] Since that one was sealed."""
    ranks: list[RankStatus]
    quarantined: int
    """Damaged blocks of data that were left out."""
    starts: int
    """How often the run was started."""
    causes: dict[str, int]
    """Why starts ended that were followed by another one: kind → how often."""
    exits: list[dict[str, Any]]
    """Why ranks of the newest start left, first cause first; empty while it runs, or where they were killed."""
    stragglers: list[str]
    """Ranks that hold the others up, in words; empty where none does, or it is not running."""
    ends: list[dict[str, Any]]
    """What a supervisor found at the ends of the last starts, and what it did; empty where none watches."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the progress stands among the others."""
        values = asdict(self)
        progress = values.pop("progress")
        return {**values, **progress, "goodput": self.progress.goodput}


def read_status(run: Path, state_of: Callable[[str], str | None] = lambda job: None) -> RunStatus:
    """Reads config, records, heartbeats and checkpoints; `state_of` may ask Slurm (see `cluster.outlook`).

    Raises ClusterError when `run` is no run directory.
    """
    steps, every = _plan(run)
    outlook = look_out(run, steps, every, state_of)
    now, beats, known = time.time(), heartbeats(run), events(run)
    ranks = [
        RankStatus(b["rank"], b["host"], b["phase"], b["step"], now - b["time"], b["compute_s"]) for b in beats.values()
    ]
    saved = checkpoint_steps(run)
    whole = next((step for step in reversed(saved) if is_whole(checkpoint(run, step))), None)
    again = [e for e in known if e.get("event") == "end" and e.get("decision") not in ("finish", "give up")]
    return RunStatus(
        run=str(run),
        state=outlook.state,
        next=outlook.next,
        progress=read_progress(run, steps, None if outlook.rests else now),
        checkpoints=saved,
        whole=whole,
        saved_s=None if whole is None else now - (checkpoint(run, whole) / MARKER).stat().st_mtime,
        ranks=sorted(ranks, key=lambda rank: rank.rank),
        quarantined=_quarantined(run / "quarantine.jsonl"),
        starts=(newest := newest_start(run)),
        causes=dict(Counter(str(e.get("cause", {}).get("kind")) for e in again)),
        exits=exit_notes(run, newest),
        stragglers=[one.words for one in stragglers(beats.values())],
        ends=[event for event in known if event.get("event") not in ("start", "job")][-5:],
    )


def _plan(run: Path) -> tuple[int, int | None]:
    """The run's steps, and those between two checkpoints; of its launch where it has not begun."""
    places = [run / "config.yaml", *sorted((run / FOLDER).glob(f"*/{CONFIG}"), reverse=True)]
    config = next((path for path in places if path.is_file()), None)
    if config is None:
        raise ClusterError(f"{run} is not a run directory (no config.yaml in it); give the folder of a run.")
    import yaml

    try:
        tree = yaml.safe_load(config.read_text(encoding="utf-8"))
        every = tree.get("checkpoint", {}).get("every")
        return int(tree["train"]["steps"]), int(every) if every else None
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError):
        raise ClusterError(
            f"{config} is not a run's config (it has no train.steps); give the folder of a run."
        ) from None


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
