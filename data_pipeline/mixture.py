"""Which component of a mixture the k-th sequence comes from: a low-discrepancy schedule with closed-form counts.

Weights are rounded to whole slots of a cycle of M = 65,536 sequences (largest remainder), a component's i-th of n
occurrences in a cycle is due at (i + 1/2) / n, and the cycle is all of them in the order in which they are due. So at
any prefix a component is within as many sequences of its share as there are components, far closer than drawing at
random would be, and the number of a component's sequences before k is a product and a table: no scan, no state. When
the weights change at a recorded k, a new cycle begins there and every component goes on in its own order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.errors import DataError

#: M, sequences of a cycle.
CYCLE = 65_536


class _Segment(NamedTuple):
    first: int
    slots: np.ndarray  # int64 [components]: n, occurrences in a cycle
    before: np.ndarray  # int64 [components]: sequences of each before `first`
    component: np.ndarray  # int16 [M]
    occurrence: np.ndarray  # int32 [M]: i, of that component in the cycle


class Mixture:
    """Maps a global sequence number to a component and that component's own sequence number, in O(log segments).

    Args:
        names: the components, in a fixed order.
        weights: (first k, {name: weight}), the first from k = 0, in rising order. Weights are shares of sequences; they
            need not sum to one, and a component that is not named has the weight 0.

    Raises:
        DataError: a name is unknown, a weight is negative or too small for a cycle, all are 0, or the order is wrong.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        self.names = tuple(names)
        self._segments: list[_Segment] = []
        for first, shares in weights:
            before = np.zeros(len(self.names), dtype=np.int64)
            if (first != 0) if not self._segments else (first <= self._segments[-1].first):
                raise DataError(f"the weights that begin at sequence {first}: give them from 0 on, in rising order.")
            if self._segments:
                before = np.array([self._count(self._segments[-1], c, first) for c in range(len(self.names))])
            slots = _slots(self.names, shares)
            self._segments.append(_Segment(first, slots, before, *_cycle(slots)))
        self._firsts = [segment.first for segment in self._segments]

    def locate(self, k: int) -> tuple[int, int]:
        """(component, its own sequence number) of global sequence k >= 0."""
        components, numbers = self.locate_all(np.array([k]))
        return int(components[0]), int(numbers[0])

    def locate_all(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`locate` of several sequences, int64 [n]: their components and own numbers, int64 [n] each."""
        places = np.searchsorted(self._firsts, numbers, side="right") - 1
        found = np.empty((2, len(numbers)), dtype=np.int64)
        for place in np.unique(places).tolist():
            segment, chosen = self._segments[place], places == place
            cycle, slot = np.divmod(numbers[chosen] - segment.first, CYCLE)
            c = segment.component[slot]
            found[0, chosen] = c
            found[1, chosen] = segment.before[c] + cycle * segment.slots[c] + segment.occurrence[slot]
        return found[0], found[1]

    def count(self, component: int, k: int) -> int:
        """How many of the first k sequences are that component's."""
        return self._count(self._segments[bisect_right(self._firsts, k) - 1], component, k)

    def shares(self, k: int) -> np.ndarray:
        """The components' shares at sequence k as they are kept, float64 [components], sum 1."""
        shares: np.ndarray = self._segments[bisect_right(self._firsts, k) - 1].slots / CYCLE
        return shares

    @staticmethod
    def _count(segment: _Segment, component: int, k: int) -> int:
        cycle, slot = divmod(k - segment.first, CYCLE)
        inside = int(np.count_nonzero(segment.component[:slot] == component))
        return int(segment.before[component]) + cycle * int(segment.slots[component]) + inside


def _slots(names: Sequence[str], shares: Mapping[str, float]) -> np.ndarray:
    unknown = sorted(set(shares) - set(names))
    if unknown:
        raise DataError(f"the weights name {unknown[0]!r}, which is no dataset of the mixture ({', '.join(names)}).")
    weights = np.array([float(shares.get(name, 0.0)) for name in names])
    if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
        raise DataError(f"the weights {dict(shares)} must be numbers of at least 0, and one of them above 0.")
    ideal = weights / weights.sum() * CYCLE
    slots = np.floor(ideal).astype(np.int64)
    # Largest remainder; rounding makes equal remainders equal on every machine.
    order = np.argsort(-np.round(ideal - slots, 9), kind="stable")
    slots[order[: CYCLE - int(slots.sum())]] += 1
    lost = [name for name, weight, n in zip(names, weights, slots, strict=True) if weight > 0 and n == 0]
    if lost:
        raise DataError(
            f"the weight of {lost[0]!r} is less than a {CYCLE:,}th of the mixture: raise it, or leave it out."
        )
    return slots


def _cycle(slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    component = np.repeat(np.arange(len(slots), dtype=np.int16), slots)
    occurrence = np.concatenate([np.arange(n, dtype=np.int32) for n in slots])
    due = (occurrence + 0.5) / slots[component]  # correctly rounded: the same on every machine
    order = np.argsort(due, kind="stable")
    return component[order], occurrence[order]
