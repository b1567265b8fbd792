"""Who does which unit of a build that several machines share, told by files alone.

A claim is a file that only one can make: ``UNIT.1``, and ``UNIT.2`` for whoever takes the unit over, so that of any
number who see a claim go stale one gets the next number. Its holder renames it to ``UNIT.1.released`` (free for all at
once) or ``UNIT.1.failed`` (free after a pause, and counted). A holder lives as long as its file in ``tasks`` changes,
by the watcher's own clock: the clocks of the machines need not agree, and no lock is needed. A claim saves work and
decides nothing: a unit that two have done is the same to the byte, and the first result stays.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.build_plan import write_atomically
from data_pipeline.errors import DataError

CLAIMS, TASKS, END = "claims", "tasks", "end.json"
_CLAIM = re.compile(r"(.+)\.(\d+)(?:\.(released|failed))?")
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


@dataclass(frozen=True)
class Patience:
    """How long one waits for another (s), and how often a unit may fail before the build is given up."""

    silent_s: float = 60.0
    """A holder whose file stands still for so long is dead."""
    pause_s: float = 20.0
    """Before a unit that failed is tried again."""
    tries: int = 4
    """So often a unit may fail, or take whoever does it with it."""
    poll_s: float = 1.0

    @property
    def beat_s(self) -> float:
        """How often a living holder shows that it lives."""
        return min(10.0, self.silent_s / 6)


def make_once(path: Path, text: str) -> bool:
    """Make a file with all of its text, unless it is there; says whether this call made it. Raises OSError."""
    unfinished = path.with_name(f".{uuid.uuid4().hex}")
    unfinished.write_text(text, encoding="utf-8")
    try:
        with suppress(FileExistsError):
            os.link(unfinished, path)
        # An answer of NFS may be lost, and the repetition then finds its own work: the number of links tells.
        return unfinished.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True
    finally:
        unfinished.unlink(missing_ok=True)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty if it cannot be read (now)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def end(folder: Path, outcome: str, words: str, task: str) -> None:
    """Say how the build of a launch has ended, for all its tasks; who comes first is right. Raises OSError."""
    text = json.dumps({"outcome": outcome, "words": words, "task": task, "time": time.time()})
    make_once(folder / END, text + "\n")


@dataclass(frozen=True)
class _Claim:
    task: str
    life: str
    failures: int
    words: str


class Claims:
    """The claims of one task of a launch; only for one thread."""

    def __init__(
        self, folder: Path, task: str, life: str, patience: Patience, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Of the task of this name, in this life of it: a task that is started again is another life."""
        self._folder, self._task, self._life, self._clock = folder, task, life, clock
        self.patience = patience
        self._directory = folder / CLAIMS
        self._held: dict[str, int] = {}
        self._read: dict[str, _Claim] = {}
        self._since: dict[str, float] = {}
        self._beats: dict[str, tuple[Any, float]] = {}
        self._looked = -float("inf")

    def units(self) -> list[str]:
        """What this task holds."""
        return sorted(self._held)

    def take(self, units: Iterable[str]) -> str | None:
        """Claim one of these units, the first that is free; None if there is none.

        Raises:
            DataError: a unit has failed so often that the build is to be given up.
            OSError: the folder.
        """
        newest = self._newest()
        self._watch(newest)
        for unit in units:
            if unit in self._held:
                continue
            number, state = newest.get(unit, (0, ""))
            failures = self._failures(unit, number, state) if number else 0
            if failures is not None and self._make(unit, number + 1, failures):
                return unit
        return None

    def done(self, unit: str) -> None:
        """A unit is finished; its claim stays, as a record."""
        self._held.pop(unit, None)

    def release(self) -> None:
        """Let go of all units, unfinished: others may take them at once."""
        for unit, number in self._held.items():
            path = self._directory / f"{unit}.{number}"
            with suppress(OSError):
                path.rename(path.with_name(f"{path.name}.released"))
        self._held.clear()

    def fail(self, unit: str, words: str) -> None:
        """A unit has failed: it is tried again after a pause, by anybody. Raises OSError."""
        number = self._held.pop(unit)
        path = self._directory / f"{unit}.{number}"
        failures = self._read_claim(path.name).failures + 1
        write_atomically(path.with_name(f"{path.name}.failed"), self._text(failures, words))
        path.unlink(missing_ok=True)

    def _make(self, unit: str, number: int, failures: int) -> bool:
        if not make_once(self._directory / f"{unit}.{number}", self._text(failures, "")):
            return False
        self._held[unit] = number
        return True

    def _text(self, failures: int, words: str) -> str:
        return json.dumps({"task": self._task, "life": self._life, "failures": failures, "words": words}) + "\n"

    def _newest(self) -> dict[str, tuple[int, str]]:
        """Unit → number and state of its last claim."""
        found: dict[str, tuple[int, str]] = {}
        for name in os.listdir(self._directory):  # noqa: PTH208 - one call, and no object a file
            if match := _CLAIM.fullmatch(name):
                unit, number, state = match.group(1), int(match.group(2)), match.group(3) or ""
                found[unit] = max(found.get(unit, (0, "")), (number, state))
        return found

    def _watch(self, newest: dict[str, tuple[int, str]]) -> None:
        """Look, from time to time, at the signs of life of all who hold something."""
        now = self._clock()
        if now - self._looked < self.patience.beat_s:
            return
        self._looked = now
        names = (f"{unit}.{number}" for unit, (number, state) in newest.items() if not state)
        for holder in {self._read_claim(name).task for name in names} - {""}:
            beat = read_object(self._folder / TASKS / f"{holder}.json")
            seen = (beat.get("life"), beat.get("beat"))
            if holder not in self._beats or self._beats[holder][0] != seen:
                self._beats[holder] = (seen, now)

    def _failures(self, unit: str, number: int, state: str) -> int | None:
        """How often a unit has failed if it is free, else None. Raises DataError if that is too often."""
        name = f"{unit}.{number}{'.' if state else ''}{state}"
        claim = self._read_claim(name)
        if state == "released":
            return claim.failures
        if state == "failed":
            failures, words = claim.failures, claim.words
            waits = self._clock() - self._since.setdefault(name, self._clock()) < self.patience.pause_s
        else:
            failures = claim.failures + 1
            words = f"whoever did it was killed, the last time task {claim.task}"
            waits = not self._dead(name, claim)
        if waits:
            return None
        if failures >= self.patience.tries:
            raise DataError(
                f"the unit {unit} has failed {failures} times, the last time: {words.rstrip('.')}; if memory was "
                "short, ask for more or lower part_bytes, and launch again to go on from what is finished."
            )
        return failures

    def _dead(self, name: str, claim: _Claim) -> bool:
        if not claim.task:  # killed while it was being made
            return self._clock() - self._since.setdefault(name, self._clock()) >= self.patience.silent_s
        if claim.task == self._task:
            return claim.life != self._life  # an earlier life of this task
        (life, _), since = self._beats.get(claim.task, ((None, None), self._clock()))
        # A task lives once: where the next life has begun, the one that claimed is over.
        return (life is not None and life != claim.life) or self._clock() - since >= self.patience.silent_s

    def _read_claim(self, name: str) -> _Claim:
        """Read once: a claim is never changed, only renamed."""
        if name not in self._read:
            tree = read_object(self._directory / name)
            if not tree:  # being made, on a file system without links, or renamed just now
                return _Claim("", "", 0, "")
            self._read[name] = _Claim(
                str(tree.get("task")), str(tree.get("life")), int(tree.get("failures", 0)), str(tree.get("words", ""))
            )
        return self._read[name]
