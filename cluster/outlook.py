"""What state a run is in and what happens to it next, in words, from its files alone."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.job import FOLDER
from cluster.run_files import STOP, checkpoint_steps, events, exit_notes, heartbeats, newest_start

ALIVE_S = 60.0
"""A heartbeat is written once a second; one that is older says that the rank is gone, stopped, or waits for long."""


@dataclass(frozen=True)
class Outlook:
    """Two answers."""

    state: str
    """training, starting, queued, done, resting, given up, silent, stopped, ..."""
    next: str
    """A sentence."""

    @property
    def rests(self) -> bool:
        """Whether nothing goes on any more."""
        return self.state in ("done", "resting", "given up", "stopped", "new")


def look_out(run: Path, every: int | None) -> Outlook:
    """Reads events, exits and heartbeats; `every` is the steps between two checkpoints, where it is known."""
    known = events(run)
    newest = newest_start(run)
    fresh = [b for b in heartbeats(run).values() if time.time() - b["time"] < ALIVE_S and b["start"] in (0, newest)]
    alive = [b for b in fresh if b["phase"] not in ("done", "stopped")]
    follows = _follower(known)
    if alive and not any(n.get("kind") == "done" for n in exit_notes(run, newest)):
        return _running(run, alive, every, follows)
    marks = [e for e in known if e.get("event") in ("start", "end", "rest", "job")]
    last = marks[-1] if marks else {}
    if last.get("event") == "end":
        return _ended(run, last, follows)
    if last.get("event") == "rest":
        return Outlook("resting", f"Nothing: {last.get('words', '')}")
    if last.get("event") == "start":
        words = f"The supervisor ends start {newest} when it stays silent, and starts it again."
        return Outlook("starting" if time.time() - last["time"] < ALIVE_S else "silent", words)
    if last.get("event") == "job":
        return Outlook("starting", f"Job {last.get('job')} looks at its nodes and starts the ranks.")
    return _unsupervised(run, newest)


def _running(run: Path, alive: list[dict[str, Any]], every: int | None, follows: str | None) -> Outlook:
    first = min(alive, key=lambda beat: beat["rank"])
    state = {"train": "training", "save": "saving", "validate": "validating"}.get(first["phase"], "starting")
    if (run / STOP).exists():
        return Outlook("stopping", f"It saves and rests, because {run / STOP} asks for it.")
    words = f"The next checkpoint is of step {(first['step'] // every + 1) * every}" if every else "It trains on"
    return Outlook(state, f"{words}; job {follows} goes on when this one ends." if follows else f"{words}.")


def _ended(run: Path, last: dict[str, Any], follows: str | None) -> Outlook:
    decision, words = last.get("decision"), last.get("words", "")
    if decision == "finish":
        if last.get("cause", {}).get("kind") == "done":
            return Outlook("done", "Nothing: the run has reached its last step.")
        return Outlook("resting", f"Nothing until {run / STOP} is removed and the run launched again.")
    if decision == "give up":
        return Outlook("given up", f"A person must look ({words}), and then launch it again.")
    if decision == "relaunch":
        pause = float(last.get("pause_s", 0.0))
        after = f" after a pause of {pause:.0f} s" if pause else ""
        return Outlook("starting again", f"The ranks are started again{after} ({words}).")
    if follows:
        return Outlook("handed over", f"Job {follows} goes on when it gets its nodes.")
    return Outlook("stopped", "Start it again, and it goes on.")


def _unsupervised(run: Path, newest: int) -> Outlook:
    launched = sorted((run / FOLDER).glob("*/submitted.json"))
    if launched and not newest:
        try:
            job = json.loads(launched[-1].read_text(encoding="utf-8"))["job"]
        except (OSError, ValueError, KeyError):
            job = "of the launch"
        return Outlook("queued", f"Job {job} starts when it gets its nodes.")
    kinds = {note.get("kind") for note in exit_notes(run, newest)}
    if "done" in kinds:
        return Outlook("done", "Nothing: the run has reached its last step.")
    saved = max(checkpoint_steps(run), default=None)
    words = f"Nobody watches it; started again it goes on from step {saved or 0}."
    return Outlook("stopped" if newest else "new", words)


def _follower(known: list[dict[str, Any]]) -> str | None:
    """The job that waits for the end of the newest one."""
    for event in reversed(known):
        if event.get("event") == "successor":
            return str(event.get("job"))
        if event.get("event") == "no successor" and "job" in event:
            return None
    return None
