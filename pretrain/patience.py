"""How long a rank may be silent: its phase's limit, or much less once it is known how long it is silent when well.

A limit that is fixed must allow for the slowest step that anybody trains, and then a hang of a fast run costs as much.
"""

from __future__ import annotations

import statistics
from collections import defaultdict, deque

from pretrain.config import WatchdogConfig

WINDOW = 50
"""Silences whose median counts."""
ENOUGH = {"train": 20, "validate": 20, "save": 3}
"""Phase → silences that must have been seen before the limit follows them; other phases come once."""


class Patience:
    """Of one rank."""

    def __init__(self, limits: WatchdogConfig) -> None:
        """`limits` are never exceeded."""
        self.limits = limits
        self._seen: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))

    def was_silent(self, phase: str, seconds: float) -> None:
        """So long it took in this phase until the next sign of life."""
        self._seen[phase].append(seconds)

    def of(self, phase: str) -> float:
        """[s] The limit now; 0 is none."""
        fixed, seen = self.limits.of(phase), self._seen[phase]
        if not fixed or not self.limits.times or len(seen) < ENOUGH.get(phase, WINDOW + 1):
            return fixed
        return min(fixed, max(self.limits.least_s, self.limits.times * statistics.median(seen)))

    def why(self, phase: str) -> str:
        """The setting that the limit is by."""
        name = f"watchdog.{self.limits.name(phase)}"
        if self.of(phase) == self.limits.of(phase):
            return name
        return f"{self.limits.times:g} times what it takes, watchdog.times, and no less than watchdog.least_s"
