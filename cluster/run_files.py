"""What a run's folder says, for those who watch it from outside: no connection to the run is needed.

Files may be in the middle of being written, or be torn by a crash: what cannot be read is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

EVENTS = "supervisor.jsonl"
STOP = "STOP"
_CHECKPOINT = re.compile(r"step-(\d+)")
_BEAT = {"rank": int, "host": str, "phase": str, "step": int, "time": float}


def newest_start(run: Path) -> int:
    """The number of the newest start that joined the run; 0 if none has."""
    return max((int(path.stem) for path in (run / "generations").glob("*.json") if path.stem.isdigit()), default=0)


def checkpoint_steps(run: Path) -> list[int]:
    """The steps of complete checkpoints, in order."""
    names = (path.name for path in (run / "checkpoints").glob("step-*"))
    return sorted(int(match.group(1)) for name in names if (match := _CHECKPOINT.fullmatch(name)))


def exit_notes(run: Path, start: int) -> list[dict[str, Any]]:
    """Why ranks of a start left, the first by time first."""
    notes = (_object(path) for path in (run / "exits" / f"{start:06d}").glob("rank-*.json"))
    return sorted((note for note in notes if note), key=lambda note: float(note.get("time", 0.0)))


def heartbeats(run: Path) -> dict[int, dict[str, Any]]:
    """Each rank's last sign of life: rank, host, phase, step, time, compute_s (or None); whichever start it is of."""
    found = {}
    for path in (run / "heartbeats").glob("rank-*.json"):
        read = _object(path)
        try:
            beat: dict[str, Any] = {name: kind(read[name]) for name, kind in _BEAT.items()}
        except (KeyError, TypeError, ValueError):
            continue
        own = read.get("compute_s")
        beat["compute_s"] = float(own) if isinstance(own, int | float) else None
        found[beat["rank"]] = beat
    return found


def events(run: Path) -> list[dict[str, Any]]:
    """What supervisors of this run have recorded, in order."""
    path = run / EVENTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return list(_objects(lines))


def _object(path: Path) -> dict[str, Any]:
    try:
        return next(iter(_objects([path.read_text(encoding="utf-8")])), {})
    except OSError:
        return {}


def _objects(texts: Iterable[str]) -> Iterable[dict[str, Any]]:
    for text in texts:
        try:
            value = json.loads(text)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value
