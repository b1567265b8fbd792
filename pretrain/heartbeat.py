"""A small file per rank that says where it is, for those who watch from outside."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

from pretrain.files import write_json


class Heartbeat:
    """Writes `rank-N.json`: phase, step, host, process and time. At most once a second unless the phase changes."""

    def __init__(self, folder: Path, rank: int, start: int = 0) -> None:
        """Of a rank of the run's start with this number (its generation)."""
        self._path = folder / f"rank-{rank}.json"
        self.folder, self.rank, self.start = folder, rank, start
        self._phase, self._last = "start", -1.0
        self.last_seen = time.monotonic()
        """When this rank last gave a sign of life."""

    @property
    def phase(self) -> str:
        """What it was doing then."""
        return self._phase

    def beat(self, phase: str, step: int) -> None:
        """Says that this rank is alive, in `phase` (start, load, convert, train, validate, save, done) at `step`."""
        now, self.last_seen = time.time(), time.monotonic()
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
            },
        )
