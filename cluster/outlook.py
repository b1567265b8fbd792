"""What state a run is in and what happens to it next, in words, from its files alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.job import FOLDER
from cluster.run_files import STOP, checkpoint_steps, events, exit_notes, heartbeats, newest_start
from cluster.slurm import LIVE

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
        return self.state in ("done", "resting", "given up", "stopped", "new", "failed")


def look_out(
    run: Path, steps: int, every: int | None, state_of: Callable[[str], str | None] = lambda job: None
) -> Outlook:
    """Reads events, exits and heartbeats.

    Args:
        run: the run's folder.
        steps: of the whole run.
        every: steps between two checkpoints, where that is known.
        state_of: what Slurm says of a job, empty where it has forgotten it; None where it cannot be asked.
    """
    known = events(run)
    newest = newest_start(run)
    if (submitted := _waiting(run, known)) is not None:
        return _queued(run, *submitted, state_of)
    marks = [e for e in known if e.get("event") in ("start", "end", "rest", "job")]
    last = marks[-1] if marks else {}
    fresh = [b for b in heartbeats(run).values() if time.time() - b["time"] < ALIVE_S and b["start"] in (0, newest)]
    alive = [b for b in fresh if b["phase"] not in ("done", "stopped")]
    follows = _follower(known)
    over = last.get("event") in ("end", "rest") and int(last.get("start", newest)) in (0, newest)
    if alive and not over and not any(n.get("kind") == "done" for n in exit_notes(run, newest)):
        return _running(run, alive, steps, every, follows)
    if last.get("event") == "end" and over:
        return _ended(run, last, steps, follows)
    if last.get("event") == "rest" and over:
        return Outlook("resting", f"Nothing: {last.get('words', '')}")
    if last.get("event") == "start":
        words = "The supervisor ends this start when it stays silent, and starts it again."
        return Outlook("starting" if time.time() - last["time"] < ALIVE_S else "silent", words)
    if last.get("event") == "job":
        return Outlook("starting", f"Job {last.get('job')} looks at its nodes and starts the ranks.")
    return _unsupervised(run, newest, steps)


def _waiting(run: Path, known: list[dict[str, Any]]) -> tuple[str, float] | None:
    """(Number, seconds since it was submitted) of the newest launch's job, where that has left no sign yet."""
    launched = sorted((run / FOLDER).glob("*/submitted.json"))
    if not launched:
        return None
    try:
        job = str(json.loads(launched[-1].read_text(encoding="utf-8"))["job"])
        age = time.time() - launched[-1].stat().st_mtime
    except (OSError, ValueError, KeyError):
        return None
    begun = any(str(e.get("job")) == job for e in known if e.get("event") in ("job", "start", "rest"))
    return None if begun else (job, age)


def _queued(run: Path, job: str, age: float, state_of: Callable[[str], str | None]) -> Outlook:
    output = run / "logs" / f"job-{job}.out"
    if (run / STOP).exists():
        return Outlook("resting", f"Nothing until {run / STOP} is removed and the run launched again.")
    state = state_of(job)
    since = f"{age / 60:.0f} min" if age > 90 else f"{age:.0f} s"
    if state is not None and state.partition(" ")[0] not in LIVE:
        how = f"ended ({state})" if state else "is over"
        return Outlook("failed", f"Job {job} {how} before it began to train; {output} says why (`pha logs {run}`).")
    words = f"Job {job}, submitted {since} ago, starts when it gets its nodes"
    unknown = "" if state is not None else f"; if squeue does not know it, {output} says why"
    return Outlook("queued", f"{words}{unknown}.")


def _running(run: Path, alive: list[dict[str, Any]], steps: int, every: int | None, follows: str | None) -> Outlook:
    first = min(alive, key=lambda beat: beat["rank"])
    state = {"train": "training", "save": "saving", "validate": "validating"}.get(first["phase"], "starting")
    if (run / STOP).exists():
        return Outlook("stopping", f"It saves and rests, because {run / STOP} asks for it.")
    words = "It trains on" if state != "starting" else "Its first step"
    if every and state != "starting":
        following = (first["step"] // every + 1) * every
        words = f"The next checkpoint is of step {min(following, steps)}"
    return Outlook(state, f"{words}; job {follows} goes on when this one ends." if follows else f"{words}.")


def _ended(run: Path, last: dict[str, Any], steps: int, follows: str | None) -> Outlook:
    decision, words = last.get("decision"), last.get("words", "")
    if decision == "finish":
        cause = last.get("cause", {})
        if cause.get("kind") == "done" and int(cause.get("step", steps)) >= steps:
            return Outlook("done", "Nothing: the run has reached its last step.")
        first = f"{run / STOP} is removed and " if (run / STOP).exists() else ""
        return Outlook("resting", f"Nothing until {first}the run is launched again.")
    if decision == "give up":
        return Outlook("given up", f"A person must look ({words}), and then launch it again.")
    if decision == "relaunch":
        pause = float(last.get("pause_s", 0.0))
        after = f" after a pause of {pause:.0f} s" if pause else ""
        return Outlook("starting again", f"The ranks are started again{after} ({words}).")
    if follows:
        return Outlook("handed over", f"Job {follows} goes on when it gets its nodes.")
    return Outlook("stopped", "Start it again, and it goes on.")


def _unsupervised(run: Path, newest: int, steps: int) -> Outlook:
    done = [note for note in exit_notes(run, newest) if note.get("kind") == "done"]
    if done and int(done[0].get("step", steps)) >= steps:
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
