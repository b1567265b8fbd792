"""What a run's folder says, for those who watch it from outside: no connection to the run is needed.

Files may be in the middle of being written, or be torn by a crash: what cannot be read is left out.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

EVENTS = "supervisor.jsonl"
STOP = "STOP"
_CHECKPOINT = re.compile(r"step-(\d+)")
_BEAT = {"rank": int, "host": str, "phase": str, "step": int, "time": float}
START = "PHA_START"
"""The environment variable that tells ranks where to say why they cannot join; the file's stem marks their start."""
MARKER = "COMMITTED"
"""In a checkpoint's folder: the hash of its manifest, written last."""
_TAIL = 1 << 20
"""Bytes of a file of records that are read for its last ones: a long run's may have gigabytes."""


def newest_start(run: Path) -> int:
    """The number of the newest start that joined the run; 0 if none has."""
    return max((int(path.stem) for path in (run / "generations").glob("*.json") if path.stem.isdigit()), default=0)


def mark_file(run: Path, mark: str) -> Path:
    """Where ranks of the start with this mark say why they cannot join."""
    return run.absolute() / "exits" / f"{mark}.json"


def refusal(run: Path, mark: str) -> dict[str, Any]:
    """What they have said; empty where they have not."""
    return _object(mark_file(run, mark))


def start_of(run: Path, mark: str, after: int) -> int:
    """The number, above `after`, of the start with this mark; 0 while it has not joined."""
    for number in range(after + 1, newest_start(run) + 1):
        if _object(run / "generations" / f"{number:06d}.json").get("mark") == mark:
            return number
    return 0


def last_records(run: Path) -> list[dict[str, Any]]:
    """The end of metrics.jsonl, in order."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return list(_objects(lines[1:] if size > _TAIL else lines))


def save_seconds(run: Path) -> float | None:
    """What the longest of the last 20 checkpoints took; None where none is known."""
    saved = [float(r["seconds"]) for r in last_records(run) if r.get("event") == "checkpoint" and "seconds" in r]
    return max(saved[-20:], default=None)


def checkpoint_steps(run: Path) -> list[int]:
    """The steps of complete checkpoints, in order."""
    names = (path.name for path in (run / "checkpoints").glob("step-*"))
    return sorted(int(match.group(1)) for name in names if (match := _CHECKPOINT.fullmatch(name)))


def checkpoint(run: Path, step: int) -> Path:
    """The folder of the checkpoint of this step."""
    return run / "checkpoints" / f"step-{step:08d}"


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint's manifest is the sealed one, and its files have the sizes that it tells.

    Their bytes are not read: a start verifies those before it uses them.
    """
    manifest = folder / "manifest.json"
    try:
        if hashlib.sha256(manifest.read_bytes()).hexdigest() != (folder / MARKER).read_text("ascii").strip():
            return False
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in _object(manifest).items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def exit_notes(run: Path, start: int) -> list[dict[str, Any]]:
    """Why ranks of a start left, the first by time first."""
    notes = (_object(path) for path in (run / "exits" / f"{start:06d}").glob("rank-*.json"))
    return sorted((note for note in notes if note), key=lambda note: float(note.get("time", 0.0)))


def heartbeats(run: Path) -> dict[int, dict[str, Any]]:
    """Each rank's last sign of life: rank, host, phase, step, time, start (0 where it does not say), limit_s, how
    long its own watchdog lets it be silent, and compute_s, its own part of a step (or None).
    """
    found = {}
    for path in (run / "heartbeats").glob("rank-*.json"):
        written = _object(path)
        try:
            beat: dict[str, Any] = {name: kind(written[name]) for name, kind in _BEAT.items()}
            beat["start"] = int(written.get("start", 0))
        except (KeyError, TypeError, ValueError):
            continue
        limit = written.get("limit_s")
        beat["limit_s"] = float(limit) if isinstance(limit, int | float) else None
        own = written.get("compute_s")
        beat["compute_s"] = float(own) if isinstance(own, int | float) else None
        found[beat["rank"]] = beat
    return found


def events(run: Path) -> list[dict[str, Any]]:
    """What supervisors of this run have recorded, in order."""
    path = run / EVENTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return list(_objects(lines))


def record(run: Path, event: str, **values: Any) -> None:
    """Adds an event to them. A disk that is full must not end what keeps a run alive: then it is not recorded."""
    line = json.dumps({"event": event, "time": time.time(), **values}) + "\n"
    try:
        run.mkdir(parents=True, exist_ok=True)
        with (run / EVENTS).open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError:
        return


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
