"""How long a start takes, by phase: from the process's birth to the first step."""

from __future__ import annotations

import os
import time
from pathlib import Path


class Startup:
    """Marks the ends of phases that follow each other; the first began with the process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic() - _process_age()

    def mark(self, phase: str) -> None:
        """The phase has ended now, and the next one begins."""
        now = time.monotonic()
        self.seconds[phase] = round(now - self._last, 3)
        self._last = now

    def ends(self, phase: str) -> bool:
        """Marks the last phase, once; whether this was the time."""
        if phase in self.seconds:
            return False
        self.mark(phase)
        return True


def _process_age() -> float:
    """Seconds since this process began (Linux), or 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0
