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

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / f"rank-{rank}.json"
        self._rank = rank
        self._phase, self._last = "", 0.0

    def beat(self, phase: str, step: int) -> None:
        """Says that this rank is alive, in `phase` (start, train, validate, save, done) at `step`."""
        now = time.time()
        if phase == self._phase and now - self._last < 1.0:
            return
        self._phase, self._last = phase, now
        with contextlib.suppress(OSError):  # a full disk: those who watch see the beat stop; the run must not
            self._write(step, now)

    def _write(self, step: int, now: float) -> None:
        write_json(
            self._path,
            {
                "rank": self._rank,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "phase": self._phase,
                "step": step,
                "time": now,
            },
        )
