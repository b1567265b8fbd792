"""A small file per rank that says where it is, for those who watch from outside."""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import time
from collections import deque
from pathlib import Path

from pretrain.config import WatchdogConfig
from pretrain.files import write_json
from pretrain.patience import Patience

WINDOW = 20
"""Steps whose median is this rank's own time."""


class Heartbeat:
    """Writes `rank-N.json`: phase, step, host, process and time. At most once a second unless the phase changes.

    `limit_s` is how long it may be silent from then on (0: as long as it likes). While it trains also `compute_s`: the
    seconds that this rank itself computed in a step before it met the others, the median of the last `WINDOW` steps
    (null before). All ranks' steps take equally long; this tells who is waited for.
    """

    def __init__(self, folder: Path, rank: int, start: int = 0, limits: WatchdogConfig | None = None) -> None:
        """Of a rank of the run's start with this number (its generation), which may be silent for so long."""
        self._path = folder / f"rank-{rank}.json"
        self.folder, self.rank, self.start = folder, rank, start
        self._phase, self._last = "start", -1.0
        self.patience = Patience(limits or WatchdogConfig())
        self._own: deque[float] = deque(maxlen=WINDOW)
        self.last_seen = time.monotonic()
        """When this rank last gave a sign of life."""

    @property
    def phase(self) -> str:
        """What it was doing then."""
        return self._phase

    def beat(self, phase: str, step: int, compute_s: float | None = None) -> None:
        """Says that this rank is alive, in `phase` (start, load, convert, train, validate, save, done) at `step`.

        `compute_s` is its own part of that step, where it was measured.
        """
        now, before, self.last_seen = time.time(), self.last_seen, time.monotonic()
        self.patience.was_silent(self._phase, self.last_seen - before)
        if compute_s is not None:
            self._own.append(compute_s)
        if phase == self._phase and now - self._last < 1.0:
            return
        self._phase, self._last = phase, now
        with contextlib.suppress(OSError):  # a full disk: those who watch see the beat stop; the run must not
            self._write(step, now)

    def _write(self, step: int, now: float) -> None:
        write_json(
            self._path,
            {
                "rank": self.rank,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "start": self.start,
                "phase": self._phase,
                "step": step,
                "time": now,
                "limit_s": self.patience.of(self._phase),
                "compute_s": statistics.median(self._own) if len(self._own) == WINDOW else None,
            },
        )
