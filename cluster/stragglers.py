"""Names the ranks that hold the others up, by what each says of its own part of a step.

All ranks' steps take equally long, because they meet in each; `compute_s` of a heartbeat is what a rank computed
before it met the others.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SLOWER = 1.3
"""Times the median from which on a rank is one."""
BEATS = 5
"""So many heartbeats in a row it must have been: each is already the median of many steps."""


@dataclass(frozen=True)
class Straggler:
    """A rank that computes slowly."""

    rank: int
    host: str
    compute_s: float
    median_s: float
    """Of all ranks."""
    alone: bool
    """Whether other ranks of its host are well: then it is not the whole node."""

    @property
    def words(self) -> str:
        """In a sentence."""
        times = self.compute_s / self.median_s
        where = f"rank {self.rank} on {self.host}" + (", unlike others there," if self.alone else "")
        return (
            f"{where} computes {1000 * self.compute_s:.0f} ms in a step, {times:.2f} times the median of all ranks "
            f"({1000 * self.median_s:.0f} ms)"
        )


def stragglers(beats: Iterable[Mapping[str, Any]], slower: float = SLOWER) -> list[Straggler]:
    """The slow ones among ranks that train, the slowest first; none where fewer than two ranks have told.

    Of two ranks the median is the faster one's.
    """
    told = [beat for beat in beats if beat.get("phase") == "train" and beat.get("compute_s")]
    if len(told) < 2:
        return []
    middle = statistics.median_low(float(beat["compute_s"]) for beat in told)
    slow = [beat for beat in told if beat["compute_s"] > slower * middle]
    well = {str(beat["host"]) for beat in told if beat not in slow}
    found = [
        Straggler(int(b["rank"]), str(b["host"]), float(b["compute_s"]), middle, str(b["host"]) in well) for b in slow
    ]
    return sorted(found, key=lambda one: -one.compute_s)


class StragglerWatch:
    """Looks at heartbeats again and again during one start."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, float]] = {}
        """Rank → how often in a row it was slow, and the time of the last heartbeat that counted."""
        self._told: set[int] = set()

    def look(self, beats: Iterable[Mapping[str, Any]]) -> list[Straggler]:
        """Those that have been slow for `BEATS` heartbeats, each told once."""
        known = {int(beat["rank"]): beat for beat in beats}
        slow = {one.rank: one for one in stragglers(known.values())}
        for rank, beat in known.items():
            count, when = self._seen.get(rank, (0, -1.0))
            if rank not in slow:
                self._seen[rank] = (0, beat["time"])
            elif beat["time"] != when:
                self._seen[rank] = (count + 1, beat["time"])
        late = [one for rank, one in slow.items() if self._seen[rank][0] >= BEATS and rank not in self._told]
        self._told |= {one.rank for one in late}
        return late
