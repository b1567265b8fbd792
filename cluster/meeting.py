"""The folder in which the hosts of a run meet: `RUN/hosts/`, on a file system that all of them see.

    leader.json          the leader's sign of life: who it is, whom it knows, which order holds, how the run ended
    start-000003.json    its orders, one a start: which hosts have which ranks, and to start, stop or kill them
    host-NAME.json       a follower's sign of life: what it was told last, and what has become of its ranks

Each file has one writer, who replaces it. All of them are rewritten every second or are new, and everybody writes
into the folder before looking into it: a client of NFS then asks the server anew instead of believing what it
remembers of the folder. Clocks of different hosts are never compared.

Each process has a `life`, a random name. An order is of a leader's life and to the lives of followers: what an earlier
life has left behind is to nobody.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cluster.errors import ClusterError

BEAT_S = 1.0
"""Between two signs of life."""
FOLDER = "hosts"
START, STOP, KILL = "start", "stop", "kill"
_ORDER = re.compile(r"start-(\d+)\.json")


def new_life() -> str:
    """A name that no other process has."""
    return uuid.uuid4().hex[:16]


@dataclass(frozen=True)
class Part:
    """A host's part of a start."""

    first: int
    """Its first rank."""
    ranks: int
    life: str
    """The follower that is meant, and not one that has been started since."""


@dataclass(frozen=True)
class Order:
    """What a leader wants done."""

    number: int
    life: str
    """The leader's."""
    action: str
    address: str
    """Where ranks meet, with `port`."""
    port: int
    world: int
    """How many ranks there are on all hosts."""
    parts: dict[str, Part]
    """By host."""
    mark: str = ""
    """What the supervisor calls this start; its ranks say it when they join the run."""
    signal: int = 0
    """That ranks are to be sent when the action is to stop them."""


@dataclass(frozen=True)
class Lead:
    """A leader's sign of life."""

    host: str
    life: str
    beat: int
    settings: str
    """A hash of what decides the weights: followers must train the same."""
    order: int = 0
    """The number of the order that holds; 0 before there is one."""
    known: list[str] = field(default_factory=list)
    """The lives of followers that it has seen."""
    ended: int | None = None
    """The exit code with which all leave."""


@dataclass(frozen=True)
class Report:
    """A follower's sign of life."""

    host: str
    life: str
    beat: int
    pid: int
    of: str = ""
    """The life of the leader whose order it has obeyed last, with `order`."""
    order: int = 0
    codes: list[int | None] = field(default_factory=list)
    """Of its ranks, None while they run."""
    code: int | None = None
    """Of all of them together, None while they run."""
    left: bool = False
    """It has ended, and does not come back by itself."""


S = TypeVar("S", Lead, Report)
T = TypeVar("T", Order, Lead, Report)


class Meeting:
    """The folder, as one process sees it."""

    def __init__(self, run: Path) -> None:
        """Of this run. Makes the folder; raises OSError."""
        self.folder = run / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self._written: set[str] = set()

    @contextlib.contextmanager
    def as_host(self, name: str) -> Iterator[None]:
        """Inside, no other process is this host (on file systems with flock). Raises ClusterError."""
        with (self.folder / f".{name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ClusterError(
                    f"Another process is the host {name} of this run already; end it, or wait until it has ended."
                ) from None
            yield

    def give(self, order: Order) -> bool:
        """Writes an order, which holds once the leader's sign of life points at it; whether the disk took it."""
        try:
            self._replace(f"start-{order.number:06d}.json", order)
        except OSError:
            return False
        return True

    def order(self, number: int) -> Order | None:
        """The order with this number, if it can be read."""
        found = _read(self.folder / f"start-{number:06d}.json", Order)
        if found is None:
            return None
        try:
            return dataclasses.replace(found, parts={name: Part(**part) for name, part in found.parts.items()})  # type: ignore[arg-type]  # as JSON has it
        except (TypeError, AttributeError):
            return None

    def last_number(self) -> int:
        """Of all orders that were ever given; 0 without any."""
        names = (match for path in self.folder.iterdir() if (match := _ORDER.fullmatch(path.name)))
        return max((int(match.group(1)) for match in names), default=0)

    def lead(self) -> tuple[Lead | None, str]:
        """The leader's sign of life and its stamp, which changes with each; empty where it cannot be read."""
        return self._look("leader.json", Lead)

    def report(self, host: str) -> tuple[Report | None, str]:
        """A follower's sign of life and its stamp, which changes with each; empty where it cannot be read."""
        return self._look(f"host-{host}.json", Report)

    def say(self, sign: Lead | Report) -> None:
        """Writes this process' own sign of life. Raises ClusterError where another process writes the same one."""
        name = "leader.json" if isinstance(sign, Lead) else f"host-{sign.host}.json"
        before = self.lead()[0] if isinstance(sign, Lead) else self.report(sign.host)[0]
        if name in self._written and before is not None and before.life != sign.life:
            raise ClusterError(f"Another process is the host {sign.host} of this run too; end one of the two.")
        try:
            self._replace(name, sign)
            self._written.add(name)
        except OSError:  # a full disk: the file's time needs no space
            with contextlib.suppress(OSError):
                os.utime(self.folder / name)

    def _replace(self, name: str, value: Order | Lead | Report) -> None:
        """Atomically; not synced to disk, because nothing here outlives its processes."""
        temporary = self.folder / f".{name}.{os.getpid()}"
        temporary.write_text(json.dumps(dataclasses.asdict(value), sort_keys=True) + "\n", encoding="utf-8")
        temporary.replace(self.folder / name)

    def _look(self, name: str, kind: type[S]) -> tuple[S | None, str]:
        try:
            touched = (self.folder / name).stat().st_mtime_ns
        except OSError:
            return None, ""
        found = _read(self.folder / name, kind)
        return found, f"{found.life}-{found.beat}-{touched}" if found is not None else ""


def _read(path: Path, kind: type[T]) -> T | None:
    """What cannot be read, or is of another version, is not there."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
        return kind(**value)
    except (OSError, ValueError, TypeError):
        return None


class Pulse:
    """How long somebody else has given no sign of life, by this process' own looks."""

    def __init__(self) -> None:
        self.silent_s = 0.0
        """Since the last sign; what passed between two looks counts for at most two beats, because a process that
        was stopped, or waited for the file system as all did, has not been looking."""
        self.beats = 0
        """Signs that came while this process looked: what was there before its first look says nothing."""
        self._stamp: str | None = None
        self._looked = math.inf

    def look(self, stamp: str, now: float) -> None:
        """Takes note of a stamp, empty where there is no sign, at this time of a steady clock [s]."""
        if stamp and stamp != self._stamp:
            self.beats += self._stamp is not None
            self._stamp, self.silent_s = stamp, 0.0
        else:
            self._stamp = self._stamp or ""
            self.silent_s += min(max(now - self._looked, 0.0), 2 * BEAT_S)
        self._looked = now
