"""Best-fit packing: sequences of whole documents, decided group by group so that any sequence is found at once.

The split's blocks are taken in stored order as groups of about :data:`_ROWS` sequences' tokens. Within a group, a
document longer than T tokens gives floor(n / T) full sequences and a remainder; remainders and shorter documents are
packed by best-fit-decreasing (Ding et al. 2024, "Fewer truncations improve language modeling"): the largest first, each
into the fullest sequence that still holds it. So no document is cut that fits, every token is an input exactly once an
epoch, and what a sequence lacks to T tokens is padding. Sequences keep the order of their first tokens in the group.

The number of a group's sequences is counted once from the documents table. The epoch then permutes groups and deals
sequences to lanes exactly like :mod:`data_pipeline.order` does with tokens: lane l is the contiguous cut of R rows
from l·R, and what lies beyond the epoch's last sequence is empty, fewer than L sequences.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections import OrderedDict

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.order import Piece, check_numbers
from data_pipeline.shuffle import PLAIN_UNITS, Shuffled

#: Sequences of a group, about: more waste less and touch more blocks for one sequence.
_ROWS = 64
#: Groups that are counted together, to bound memory.
_CHUNK = 2048
#: Groups whose packing is kept, about 20 kB each.
_CACHED_GROUPS = 1024


class PackedOrder:
    """Finds the documents of the k-th sequence in O(log groups), at the same cost for every k. Thread-safe.

    Args:
        blocks: tokens of every block, integers [blocks].
        first_documents: each block's first row in the documents table, [blocks].
        documents: tokens of every document in stored order, separators included, [documents].
        seq_len, lanes, seed, shuffle, first_epoch, plain_units: as for :class:`data_pipeline.order.Order`.

    Attributes:
        sequences: of an epoch, without empty ones.
        rows: R.
        tokens: N, the inputs of an epoch.

    Raises:
        DataError: a number is out of its range.
    """

    #: Rows are whole documents, each followed by its end.
    whole_documents = True

    def __init__(
        self,
        blocks: np.ndarray,
        first_documents: np.ndarray,
        documents: np.ndarray,
        seq_len: int,
        lanes: int,
        seed: int,
        shuffle: bool,
        first_epoch: int = 0,
        plain_units: int = PLAIN_UNITS,
    ) -> None:
        check_numbers([seq_len], lanes, seed)
        self.seq_len, self.lanes, self._first_epoch = seq_len, lanes, first_epoch
        self.tokens = int(blocks.sum(dtype=np.int64))
        self._documents, self._first_documents = documents, first_documents
        self._blocks_a_group = max(1, -(-_ROWS * seq_len * len(blocks) // max(1, self.tokens)))
        self._group_documents = np.append(first_documents[:: self._blocks_a_group], len(documents)).astype(np.int64)
        self._stream = Shuffled(count_rows(documents, self._group_documents, seq_len), seed, shuffle, plain_units)
        self.sequences = self._stream.total
        if self.sequences < 1:
            raise DataError("a split without tokens has nothing to predict: build a larger dataset.")
        self.rows = -(-self.sequences // lanes)
        self._packed: OrderedDict[int, list[list[Piece]]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def sequences_per_epoch(self) -> int:
        """S: sequences of an epoch, empty ones included."""
        return self.rows * self.lanes

    @property
    def padding_share(self) -> float:
        """The share of an epoch's labels that is padding."""
        return 1.0 - self.tokens / (self.sequences_per_epoch * self.seq_len)

    def length_at(self, k: int) -> int:
        """T, the same for every sequence."""
        return self.seq_len

    def epoch_of(self, k: int) -> int:
        """The epoch that global sequence k belongs to."""
        return self._first_epoch + k // self.sequences_per_epoch

    def locate(self, k: int) -> list[Piece]:
        """The documents, or parts of long ones, that are the inputs of global sequence k, in order; together at most
        T tokens. Nothing for an empty sequence at the epoch's end. Raises IndexError for a negative k.
        """
        if k < 0:
            raise IndexError(f"sequence {k}")
        row, lane = divmod(k % self.sequences_per_epoch, self.lanes)
        position = lane * self.rows + row
        if position >= self.sequences:
            return []
        found = self._stream.runs(self.epoch_of(k), np.array([position]), np.array([position + 1]))
        return self._group(int(found.unit[0]))[int(found.start[0])]

    def _group(self, number: int) -> list[list[Piece]]:
        with self._lock:
            found = self._packed.get(number)
            if found is None:
                found = self._packed[number] = self._pack(number)
                if len(self._packed) > _CACHED_GROUPS:
                    self._packed.popitem(last=False)
            self._packed.move_to_end(number)
            return found

    def _pack(self, number: int) -> list[list[Piece]]:
        first, last = (int(row) for row in self._group_documents[number : number + 2])
        block = number * self._blocks_a_group
        end = min(block + self._blocks_a_group, len(self._first_documents))
        changes = set(self._first_documents[block + 1 : end].tolist())
        # A block without documents shares its first row with the next one; only the last of them has the row.
        skipped = np.bincount(self._first_documents[block + 1 : end] - first, minlength=last - first + 1)
        pieces, offset = [], 0
        for row, tokens in enumerate(self._documents[first:last].tolist()):
            if first + row in changes:
                block, offset = block + int(skipped[row]), 0
            for start in range(0, tokens, self.seq_len):
                stop = min(start + self.seq_len, tokens)
                pieces.append(Piece(block, offset + start, offset + stop))
            offset += tokens
        return best_fit(pieces, self.seq_len)


def best_fit(pieces: list[Piece], seq_len: int) -> list[list[Piece]]:
    """Rows of pieces, at most `seq_len` tokens each, by best-fit-decreasing; pieces and rows in stored order."""
    order = sorted(range(len(pieces)), key=lambda i: (pieces[i].start - pieces[i].stop, i))
    rows: list[list[Piece]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for i in order:
        size = pieces[i].stop - pieces[i].start
        place = bisect_left(room, (size, -1))
        if place == len(room):
            rows.append([pieces[i]])
            left, row = seq_len - size, len(rows) - 1
        else:
            left, row = room.pop(place)
            rows[row].append(pieces[i])
            left -= size
        if left:
            insort(room, (left, row))
    return sorted(sorted(row) for row in rows)


def count_rows(documents: np.ndarray, bounds: np.ndarray, seq_len: int) -> np.ndarray:
    """How many rows :func:`best_fit` makes of each group of documents, int64 [groups].

    Args:
        documents: tokens of every document, [documents].
        bounds: each group's first document, and the number of documents, [groups + 1].
        seq_len: T.

    All groups of a chunk are packed at once, their i-th largest remainders in step i. How many rows best-fit opens does
    not depend on which of two equally full rows it takes, so this counts what `best_fit` packs.
    """
    counts = np.zeros(len(bounds) - 1, dtype=np.int64)
    for first in range(0, len(counts), _CHUNK):
        part = bounds[first : first + _CHUNK + 1]
        counts[first : first + _CHUNK] = _count_chunk(documents[part[0] : part[-1]], part - part[0], seq_len)
    return counts


def _count_chunk(documents: np.ndarray, bounds: np.ndarray, seq_len: int) -> np.ndarray:
    groups = len(bounds) - 1
    documents = np.asarray(documents, dtype=np.int64)
    group = np.repeat(np.arange(groups), np.diff(bounds))
    full = np.bincount(group, weights=documents // seq_len, minlength=groups).astype(np.int64)
    rest = documents % seq_len
    group, rest = group[rest > 0], rest[rest > 0]
    by_size = np.lexsort((-rest, group))
    group, rest = group[by_size], rest[by_size]
    begins = np.searchsorted(group, np.arange(groups + 1))
    room = np.zeros((groups, 8), dtype=np.int32)  # tokens left in each row that is open; 0: full or not yet opened
    opened = np.zeros(groups, dtype=np.int64)
    number, sizes = np.arange(groups), np.diff(begins)
    for step in range(int(sizes.max(initial=0))):
        live = number[sizes > step]
        size = rest[begins[live] + step][:, None].astype(np.int32)
        if opened[live].max() == room.shape[1]:
            room = np.concatenate([room, np.zeros_like(room)], axis=1)
        left = room[live]
        left = np.where(left >= size, left, np.int32(2**31 - 1))
        best = left.argmin(axis=1)
        fits = left[np.arange(len(live)), best] < 2**31 - 1
        new = live[~fits]
        room[live[fits], best[fits]] -= size[fits, 0]
        room[new, opened[new]] = seq_len - size[~fits, 0]
        opened[new] += 1
    return full + opened
