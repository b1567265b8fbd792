"""Units of known sizes, shuffled anew each epoch and laid end to end: a pure function of (sizes, seed, epoch).

A unit is what is kept together: a block of tokens, or a group of packed rows. Two rules, chosen by the number of units
alone, so that a dataset has one order for ever:

* up to :data:`PLAIN_UNITS` units, all are permuted at once. This costs O(n log n) when an epoch is first touched
  (20 ms for the 138,000 blocks of nine billion tokens) and 16 bytes a unit;
* beyond, two levels: group g holds the units g, g + n, g + 2n, ... of n groups, hence some of every part of the
  dataset. The epoch permutes the groups, and each group permutes its own units under a key of its own. Group totals do
  not depend on the epoch, so touching a new one costs a permutation of the groups (16,000 at a trillion tokens) and
  of the one group that is asked for: no start-up, no memory that grows with the dataset.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.random import Philox

#: More units than this are permuted on two levels.
PLAIN_UNITS = 2**18
#: Units of a group, about.
_GROUP = 1024
#: The epoch that ends and the one that begins; lanes never touch more.
_CACHED_EPOCHS = 2
#: Groups whose inner order is kept: 16 kB each, so that every lane of a large batch may be inside one of its own.
_CACHED_GROUPS = 2048


class Runs(NamedTuple):
    """Elements [start, stop) of units, for several ranges at once; int64 [runs] each, in the order of the ranges.

    `range` is the number of the range that a run belongs to.
    """

    range: np.ndarray
    unit: np.ndarray
    start: np.ndarray
    stop: np.ndarray


class _Line(NamedTuple):
    """Units end to end: their numbers in order, int64 [n], and where each begins, int64 [n + 1]."""

    units: np.ndarray
    starts: np.ndarray


class Shuffled:
    """Finds elements of the shuffled units in O(log units), at the same cost for every epoch. Thread-safe.

    Args:
        sizes: elements of every unit, integers [units].
        seed: together with the epoch the key of the permutation, 0 <= seed < 2**64.
        shuffle: False keeps the stored order in every epoch.
        plain_units: up to so many units are permuted at once; part of the order, so leave it alone.

    Attributes:
        total: elements of an epoch.
    """

    def __init__(self, sizes: np.ndarray, seed: int, shuffle: bool, plain_units: int = PLAIN_UNITS) -> None:
        self.seed, self.shuffle = seed, shuffle
        self._sizes = sizes
        self.total = int(sizes.sum(dtype=np.int64))
        self._groups = -(-len(sizes) // _GROUP) if shuffle and len(sizes) > plain_units else 0
        self._group_sizes = np.array([], dtype=np.int64)
        if self._groups:
            whole = len(sizes) // self._groups * self._groups
            self._group_sizes = sizes[:whole].reshape(-1, self._groups).sum(axis=0, dtype=np.int64)
            self._group_sizes[: len(sizes) - whole] += sizes[whole:].astype(np.int64)
        self._epochs: OrderedDict[int, _Line] = OrderedDict()
        self._inner: OrderedDict[tuple[int, int], _Line] = OrderedDict()
        self._lock = threading.Lock()

    def runs(self, epoch: int, starts: np.ndarray, stops: np.ndarray) -> Runs:
        """Where the epoch's elements [starts, stops) lie, range after range; 0 <= starts < stops <= total."""
        found = _runs(self._epoch(epoch), starts, stops)
        if not self._groups:
            return found
        # A lane stays in its group for long, so there are about as many groups as ranges, and no better way.
        inner = [
            _runs(self._group(epoch, int(group)), found.start[i : i + 1], found.stop[i : i + 1])
            for i, group in enumerate(found.unit)
        ]
        number = np.repeat(found.range, [len(runs.unit) for runs in inner])
        return Runs(number, *(np.concatenate([runs[part] for runs in inner]) for part in (1, 2, 3)))

    def permutation(self, epoch: int) -> np.ndarray:
        """All units in the order of that epoch, int64 [units]. Costs O(units): for tests and for small datasets."""
        if not self._groups:
            return self._permute(len(self._sizes), epoch, 0)
        return np.concatenate([self._group(epoch, int(group)).units for group in self._epoch(epoch).units])

    def _permute(self, count: int, epoch: int, counter: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(count, dtype=np.int64)
        # Sorting raw Philox output, not Generator.permutation: only raw streams are promised to stay the same in all
        # versions of numpy, and a resumed run must not depend on the version. Ties (2**-64) fall back on the stored
        # order. The counter's second word is the group's: no two streams overlap.
        key = np.array([self.seed, epoch], dtype=np.uint64)
        words = np.array([0, counter, 0, 0], dtype=np.uint64)
        return np.argsort(Philox(key=key, counter=words).random_raw(count), kind="stable").astype(np.int64)

    def _epoch(self, number: int) -> _Line:
        number = number if self.shuffle else 0
        with self._lock:
            found = self._epochs.get(number)
            if found is None:
                sizes = self._group_sizes if self._groups else self._sizes
                units = self._permute(len(sizes), number, 0)
                found = self._epochs[number] = _line(units, sizes[units])
                if len(self._epochs) > _CACHED_EPOCHS:
                    self._epochs.popitem(last=False)
            self._epochs.move_to_end(number)
            return found

    def _group(self, epoch: int, group: int) -> _Line:
        with self._lock:
            found = self._inner.get((epoch, group))
            if found is None:
                members = np.arange(group, len(self._sizes), self._groups, dtype=np.int64)
                units = members[self._permute(len(members), epoch, group + 1)]
                found = self._inner[epoch, group] = _line(units, self._sizes[units])
                if len(self._inner) > _CACHED_GROUPS:
                    self._inner.popitem(last=False)
            self._inner.move_to_end((epoch, group))
            return found


def _line(units: np.ndarray, sizes: np.ndarray) -> _Line:
    starts = np.zeros(len(units) + 1, dtype=np.int64)
    np.cumsum(sizes, out=starts[1:])
    return _Line(units, starts)


def _runs(line: _Line, starts: np.ndarray, stops: np.ndarray) -> Runs:
    first = line.starts.searchsorted(starts, side="right") - 1
    counts = line.starts.searchsorted(stops, side="left") - first
    number = np.repeat(np.arange(len(starts)), counts)
    place = np.arange(len(number)) + np.repeat(first - np.cumsum(counts) + counts, counts)
    begin = line.starts[place]
    inside = np.maximum(starts[number], begin) - begin
    end = np.minimum(stops[number], line.starts[place + 1]) - begin
    runs = Runs(number, line.units[place], inside, end)
    empty = end <= inside  # units without elements
    return Runs(*(part[~empty] for part in runs)) if empty.any() else runs
