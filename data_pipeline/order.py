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
        stage = self._stage(k)
        beyond = k - stage.first - stage.carried * self.lanes
        if beyond < 0:
            return stage.epoch
        return stage.epoch + (stage.carried > 0) + beyond // (self._rows(stage.seq_len) * self.lanes)

    def locate(self, k: int) -> list[Piece]:
        """The pieces of blocks that make up the tokens of global sequence k, in order.

        Together they have T + 1 tokens, the last of which is only a label; fewer at the end of the epoch's stream
        (or of a lane, where the sequence length has changed), and none beyond it. Raises IndexError for a negative k.
        """
        if k < 0:
            raise IndexError(f"sequence {k}")
        start, stop = self._range(k)
        if start >= min(stop, self.tokens - 1):
            return []
        return [Piece(*run) for run in self._stream.runs(self.epoch_of(k), start, min(stop + 1, self.tokens))]

    def permutation(self, epoch: int) -> np.ndarray:
        """Block numbers in the order of that epoch, int64 [blocks]."""
        return self._stream.permutation(epoch)

    def _rows(self, seq_len: int) -> int:
        return -(-(self.tokens - 1) // (self.lanes * seq_len))

    def _stage(self, k: int) -> _Stage:
        return self._stages[bisect_right(self._firsts, k) - 1] if len(self._stages) > 1 else self._stages[0]

    def _range(self, k: int) -> tuple[int, int]:
        """The inputs of sequence k as a range of its epoch's stream, not clipped at its end."""
        stage = self._stage(k)
        length = stage.seq_len
        row, lane = divmod(k - stage.first, self.lanes)
        if row < stage.carried:
            start = int(stage.done[lane]) + row * length
            return lane * stage.cut + start, lane * stage.cut + min(start + length, stage.cut)
        rows = self._rows(length)
        start = (lane * rows + (row - stage.carried) % rows) * length
        return start, start + length

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
