"""The order in which a split is read: a pure function of (block sizes, sequence length, lanes, seed) and a number.

Per epoch the blocks are permuted and laid end to end as a virtual stream of N tokens, of which every token but the
first is predicted exactly once. With sequence length T and L lanes the stream is cut into S = R·L sequences,
R = ceil((N - 1) / (L·T)): sequence s has the inputs [s·T, s·T + T) and the labels [s·T + 1, s·T + T]. Lane l is the
contiguous cut of R sequences from s = l·R, and the epoch's j-th sequence is row (j div L) of lane (j mod L), so that
a batch takes neighbours from far apart while each lane reads forward. What lies beyond the stream's end is padding,
less than L·T tokens an epoch. S is the same in every epoch: the global sequence number k is row k mod S of epoch k
div S.

The sequence length may change at given k. The epoch in progress then goes on where each lane stands: the lanes keep
their cuts of the stream, each is read on from its own position in sequences of the new length, lane after lane from
lane 0, and those that end early are padded until the last has ended. So every token but the first is still predicted
exactly once an epoch; in such an epoch up to one sequence a lane is short at each cut's end, and lanes that had read
one sequence more or less are waited for. From the next epoch on the order is that of the new length.

Nothing here is state. Ranks, batch size and the point of resumption only choose which k to ask for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.shuffle import PLAIN_UNITS, Shuffled


class Piece(NamedTuple):
    """Tokens [start, stop) of a block."""

    block: int
    start: int
    stop: int


class Pieces(NamedTuple):
    """The pieces of several sequences, int64 [pieces] each: tokens [start, stop) of `block` belong to `row`.

    Rows are in any order, the pieces of a row in that of its tokens.
    """

    row: np.ndarray
    block: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Pieces]) -> Pieces:
        """Those of all parts, which share no row."""
        if len(parts) == 1:
            return parts[0]
        empty = np.empty(0, dtype=np.int64)
        return cls(*(np.concatenate([empty, *(part[i] for part in parts)]) for i in range(4)))


class _Stage(NamedTuple):
    """The order from sequence `first` on, until the sequence length changes."""

    first: int
    seq_len: int
    epoch: int  # the epoch in progress at `first`
    cut: int  # tokens of a lane in that epoch, before lanes are clipped at the stream's end
    done: np.ndarray  # int64 [L]: how many of them each lane has read
    carried: int  # rows in which that epoch is read to its end; 0 if it begins here


class Order:
    """Finds the tokens of the k-th sequence in O(log blocks), at the same cost for every k. Thread-safe.

    Args:
        blocks_tokens: tokens of every block, [blocks].
        seq_len: T, inputs (and labels) of a sequence; or its values as (first k, T), the first from k = 0.
        lanes: L, at most the batch size if each row of a batch shall read forward by itself.
        seed: together with the epoch the key of the permutation, 0 <= seed < 2**64.
        shuffle: False keeps the stored order in every epoch.
        first_epoch: the number of the epoch that k = 0 begins.
        plain_units: of :class:`~data_pipeline.shuffle.Shuffled`; for tests.

    Attributes:
        seq_len: T at k = 0.
        tokens: N.
        rows: R at k = 0.

    Raises:
        DataError: there are fewer than two tokens, or a number is out of its range.
    """

    #: Rows are runs of the stream, not whole documents.
    whole_documents = False

    def __init__(
        self,
        blocks_tokens: np.ndarray,
        seq_len: int | Sequence[tuple[int, int]],
        lanes: int,
        seed: int,
        shuffle: bool,
        first_epoch: int = 0,
        plain_units: int = PLAIN_UNITS,
    ) -> None:
        lengths = [(0, seq_len)] if isinstance(seq_len, int) else list(seq_len)
        check_numbers([length for _, length in lengths], lanes, seed)
        self.seq_len, self.lanes, self.seed, self.shuffle = lengths[0][1], lanes, seed, shuffle
        self._stream = Shuffled(np.asarray(blocks_tokens, dtype=np.int64), seed, shuffle, plain_units)
        self.tokens = self._stream.total
        if self.tokens < 2:
            raise DataError(f"a split of {self.tokens} token(s) has nothing to predict: build a larger dataset.")
        self.rows = self._rows(self.seq_len)
        self._stages = [
            _Stage(0, self.seq_len, first_epoch, self.rows * self.seq_len, np.zeros(lanes, dtype=np.int64), 0)
        ]
        for first, length in lengths[1:]:
            self._stages.append(self._next_stage(first, length))
        self._firsts = [stage.first for stage in self._stages]

    @property
    def sequences_per_epoch(self) -> int:
        """S at k = 0: sequences of an epoch, padded ones included."""
        return self.rows * self.lanes

    @property
    def padding_share(self) -> float:
        """The share of an epoch's labels that is padding, at k = 0's sequence length."""
        return 1.0 - (self.tokens - 1) / (self.sequences_per_epoch * self.seq_len)

    def length_at(self, k: int) -> int:
        """T of global sequence k."""
        return self._stage(k).seq_len

    def epoch_of(self, k: int) -> int:
        """The epoch that global sequence k belongs to."""
        return int(self.epochs_of(np.array([k]))[0])

    def epochs_of(self, numbers: np.ndarray) -> np.ndarray:
        """The epochs that global sequences belong to, int64 [n]."""
        return self._ranges(numbers)[0]

    def locate(self, k: int) -> list[Piece]:
        """The pieces of blocks that make up the tokens of global sequence k, in order; see :meth:`locate_all`."""
        found = self.locate_all(np.array([k]))
        parts = (part.tolist() for part in (found.block, found.start, found.stop))
        return [Piece(*piece) for piece in zip(*parts, strict=True)]

    def locate_all(self, numbers: np.ndarray) -> Pieces:
        """The pieces of blocks that make up the tokens of the global sequences `numbers`, int64 [n].

        Together a sequence's pieces have T + 1 tokens, the last of which is only a label; fewer at the end of the
        epoch's stream (or of a lane, where the sequence length has changed), and none beyond it. Raises IndexError
        for a negative number.
        """
        if len(numbers) and int(numbers.min()) < 0:
            raise IndexError(f"sequence {int(numbers.min())}")
        epochs, starts, stops = self._ranges(numbers)
        rows = np.flatnonzero(starts < np.minimum(stops, self.tokens - 1))
        found = []
        for epoch in sorted(set(epochs[rows].tolist())):
            chosen = rows[epochs[rows] == epoch]
            runs = self._stream.runs(epoch, starts[chosen], np.minimum(stops[chosen] + 1, self.tokens))
            found.append(Pieces(chosen[runs.range], runs.unit, runs.start, runs.stop))
        return Pieces.joined(found)

    def permutation(self, epoch: int) -> np.ndarray:
        """Block numbers in the order of that epoch, int64 [blocks]."""
        return self._stream.permutation(epoch)

    def _rows(self, seq_len: int) -> int:
        return -(-(self.tokens - 1) // (self.lanes * seq_len))

    def _stage(self, k: int) -> _Stage:
        return self._stages[bisect_right(self._firsts, k) - 1] if len(self._stages) > 1 else self._stages[0]

    def _ranges(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(epoch, start, stop) of global sequences: their inputs in their epoch's stream, not clipped at its end."""
        if len(self._stages) == 1:
            return self._ranges_in(self._stages[0], numbers)
        places = np.searchsorted(self._firsts, numbers, side="right") - 1
        found = np.empty((3, len(numbers)), dtype=np.int64)
        for place in np.unique(places).tolist():
            chosen = places == place
            found[:, chosen] = self._ranges_in(self._stages[place], numbers[chosen])
        return found[0], found[1], found[2]

    def _ranges_in(self, stage: _Stage, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        length, rows = stage.seq_len, self._rows(stage.seq_len)
        row, lane = np.divmod(numbers - stage.first, self.lanes)
        epoch, fresh = np.divmod(row - stage.carried, rows)
        epoch += stage.epoch + (stage.carried > 0)
        start = (lane * rows + fresh) * length
        stop = start + length
        if stage.carried:
            carried = row < stage.carried
            done = stage.done[lane] + row * length
            epoch[carried] = stage.epoch
            start = np.where(carried, lane * stage.cut + done, start)
            stop = np.where(carried, lane * stage.cut + np.minimum(done + length, stage.cut), stop)
        return epoch, start, stop

    def _next_stage(self, first: int, length: int) -> _Stage:
        """The stage that follows the last one at sequence `first`. Raises DataError if it does not lie behind it."""
        stage, lanes = self._stages[-1], self.lanes
        if first <= stage.first:
            raise DataError(
                f"the sequence length changes at sequence {first} after {stage.first}: give changes in rising order."
            )
        row, lane = divmod(first - stage.first, lanes)
        read = row + (np.arange(lanes, dtype=np.int64) < lane)
        epoch, cut, done = stage.epoch, stage.cut, stage.done
        if row >= stage.carried:
            rows = self._rows(stage.seq_len)
            number, row = divmod(row - stage.carried, rows)
            epoch, cut, done = epoch + (stage.carried > 0) + number, rows * stage.seq_len, np.zeros_like(done)
            read = row + (np.arange(lanes, dtype=np.int64) < lane)
            if row == 0 and lane == 0:  # between two epochs
                return _Stage(first, length, epoch, self._rows(length) * length, done, 0)
        done = np.minimum(done + read * stage.seq_len, cut)
        # What a lane still has before its cut's end and the stream's (whose last token is only a label).
        left = np.clip(self.tokens - 1 - np.arange(lanes, dtype=np.int64) * cut, 0, cut) - done
        carried = max(0, -(-int(left.max()) // length))
        if carried == 0:  # only padding was left
            return _Stage(first, length, epoch + 1, self._rows(length) * length, np.zeros_like(done), 0)
        return _Stage(first, length, epoch, cut, done, carried)


def check_numbers(lengths: Sequence[int], lanes: int, seed: int) -> None:
    """Raises DataError if a sequence length, the lanes or the seed is out of its range."""
    if min(lengths) < 1 or lanes < 1 or not 0 <= seed < 2**64:
        raise DataError(f"seq_len {min(lengths)} and lanes {lanes} must be at least 1, and seed {seed} in [0, 2**64).")
