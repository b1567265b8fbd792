"""The order in which a split is read: a pure function of (block sizes, sequence length, lanes, seed) and a number.

Per epoch the blocks are permuted and laid end to end as a virtual stream of N tokens, of which every token but the
first is predicted exactly once. With sequence length T and L lanes the stream is cut into S = R·L sequences,
R = ceil((N - 1) / (L·T)): sequence s has the inputs [s·T, s·T + T) and the labels [s·T + 1, s·T + T]. Lane l is the
contiguous cut of R sequences from s = l·R, and the epoch's j-th sequence is row (j div L) of lane (j mod L), so that
a batch takes neighbours from far apart while each lane reads forward. What lies beyond the stream's end is padding,
less than L·T tokens an epoch. S is the same in every epoch: the global sequence number k is row k mod S of epoch k
div S.

Nothing here is state. Ranks, batch size and the point of resumption only choose which k to ask for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.random import Philox

from data_pipeline.errors import DataError

#: The epoch that ends and the one that begins; lanes never touch more.
_CACHED_EPOCHS = 2


class Piece(NamedTuple):
    """Tokens [start, stop) of a block."""

    block: int
    start: int
    stop: int


class _Epoch(NamedTuple):
    blocks: np.ndarray  # int64 [blocks]: block numbers in this epoch's order
    starts: np.ndarray  # int64 [blocks + 1]: where each begins in the stream


class Order:
    """Finds the tokens of the k-th sequence in O(log blocks), at the same cost for every k. Thread-safe.

    Args:
        blocks_tokens: tokens of every block, [blocks].
        seq_len: T, inputs (and labels) of a sequence.
        lanes: L, at most the batch size if each row of a batch shall read forward by itself.
        seed: together with the epoch the key of the permutation, 0 <= seed < 2**64.
        shuffle: False keeps the stored order in every epoch.

    Raises:
        DataError: there are fewer than two tokens, or a number is out of its range.
    """

    def __init__(self, blocks_tokens: np.ndarray, seq_len: int, lanes: int, seed: int, shuffle: bool) -> None:
        self.seq_len, self.lanes, self.seed, self.shuffle = seq_len, lanes, seed, shuffle
        self._sizes = np.asarray(blocks_tokens, dtype=np.int64)
        self.tokens = int(self._sizes.sum())
        if seq_len < 1 or lanes < 1 or not 0 <= seed < 2**64:
            raise DataError(f"seq_len {seq_len} and lanes {lanes} must be at least 1, and seed {seed} in [0, 2**64).")
        if self.tokens < 2:
            raise DataError(f"a split of {self.tokens} token(s) has nothing to predict: build a larger dataset.")
        self.rows = -(-(self.tokens - 1) // (lanes * seq_len))
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def sequences_per_epoch(self) -> int:
        """S: sequences of an epoch, padded ones included."""
        return self.rows * self.lanes

    def locate(self, k: int) -> list[Piece]:
        """The pieces of blocks that make up the tokens of global sequence k, in order.

        Together they have T + 1 tokens, the last of which is only a label; fewer at the end of the epoch's stream,
        and none beyond it. Raises IndexError for a negative k.
        """
        if k < 0:
            raise IndexError(f"sequence {k}")
        number, j = divmod(k, self.sequences_per_epoch)
        row, lane = divmod(j, self.lanes)
        position = (lane * self.rows + row) * self.seq_len
        if position >= self.tokens - 1:
            return []
        end = min(position + self.seq_len + 1, self.tokens)
        epoch = self._epoch(number)
        i = int(epoch.starts.searchsorted(position, side="right")) - 1
        pieces = []
        while position < end:
            start, stop = int(epoch.starts[i]), min(int(epoch.starts[i + 1]), end)
            if stop > position:
                pieces.append(Piece(int(epoch.blocks[i]), position - start, stop - start))
                position = stop
            i += 1
        return pieces

    def permutation(self, epoch: int) -> np.ndarray:
        """Block numbers in the order of that epoch, int64 [blocks]."""
        count = len(self._sizes)
        if not self.shuffle:
            return np.arange(count, dtype=np.int64)
        # Sorting raw Philox output, not Generator.permutation: only raw streams are promised to stay the same in all
        # versions of numpy, and a resumed run must not depend on the version. Ties (2**-64) fall back on the stored
        # order.
        keys = Philox(key=np.array([self.seed, epoch], dtype=np.uint64)).random_raw(count)
        return np.argsort(keys, kind="stable").astype(np.int64)

    def _epoch(self, number: int) -> _Epoch:
        number = number if self.shuffle else 0
        with self._lock:
            found = self._epochs.get(number)
            if found is None:
                blocks = self.permutation(number)
                starts = np.zeros(len(blocks) + 1, dtype=np.int64)
                np.cumsum(self._sizes[blocks], out=starts[1:])
                found = self._epochs[number] = _Epoch(blocks, starts)
                if len(self._epochs) > _CACHED_EPOCHS:
                    self._epochs.popitem(last=False)
            self._epochs.move_to_end(number)
            return found
