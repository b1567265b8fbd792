"""Reads the sequences of a stream as batches of arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from data_pipeline.dataset import Split
from data_pipeline.order import Pieces
from data_pipeline.pack import IGNORE, pack_documents, pack_rows
from data_pipeline.stream import Stream

__all__ = ["IGNORE", "Batch", "DocumentBatch", "RowBatch", "read_batches", "read_sequences"]


class Batch(Protocol):
    """One rank's part of a global batch."""

    @property
    def first_sequence(self) -> int:
        """Global number of the first sequence of the *global* batch, the same on every rank."""

    @property
    def tokens(self) -> np.ndarray:
        """int64 [B, T], inputs; padding is the separator."""

    @property
    def labels(self) -> np.ndarray:
        """int64 [B, T], the token after each input, or IGNORE."""

    @property
    def documents(self) -> np.ndarray:
        """int32 [B, T], number of the document within its row; see :func:`data_pipeline.pack.pack_rows`."""

    @property
    def predictions(self) -> int:
        """Labels that are not IGNORE."""


@dataclass
class RowBatch:
    """Rows as they are stored, from which the three arrays of a :class:`Batch` are made when they are asked for.

    They are a tenth of the bytes of the three arrays, so whoever feeds an accelerator copies `rows` and derives there.

    Attributes:
        rows: uint16 or uint32 [B, T + 1]: the inputs are ``rows[:, :-1]``, the labels ``rows[:, 1:]``.
        used: int64 [B], tokens of each row that are text, from 0 to T + 1; the rest is the separator.
        bos_id: the separator.
        gaps: (row, start, stop) of tokens that stand for a quarantined block's.
    """

    first_sequence: int
    rows: np.ndarray
    used: np.ndarray
    bos_id: int
    gaps: Sequence[tuple[int, int, int]] = ()

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tokens, labels, documents = pack_rows(self.rows, self.used, self.bos_id)
        for row, start, stop in self.gaps:  # neither predict a token that is not known, nor from one
            labels[row, max(0, start - 1) : stop] = IGNORE
        return tokens, labels, documents

    @property
    def tokens(self) -> np.ndarray:
        """See :class:`Batch`."""
        return self._arrays[0]

    @property
    def labels(self) -> np.ndarray:
        """See :class:`Batch`."""
        return self._arrays[1]

    @property
    def documents(self) -> np.ndarray:
        """See :class:`Batch`."""
        return self._arrays[2]

    @property
    def predictions(self) -> int:
        """See :class:`Batch`; counted without making the arrays, unless there are gaps."""
        if self.gaps:
            return int((self.labels != IGNORE).sum())
        return int(np.maximum(self.used - 1, 0).sum())


@dataclass
class DocumentBatch:
    """Rows of whole documents, each followed by its own end; the arrays of :class:`Batch`."""

    first_sequence: int
    tokens: np.ndarray
    labels: np.ndarray
    documents: np.ndarray

    @property
    def predictions(self) -> int:
        """See :class:`Batch`."""
        return int((self.labels != IGNORE).sum())


def read_sequences(stream: Stream, numbers: Sequence[int | None], first_sequence: int) -> Batch:
    """The sequences of these global numbers as a batch; None gives a row of padding.

    A batch that lies across a change of the sequence length has the width of the longest. Raises DataError for bad
    data.
    """
    if stream.whole_documents:
        whole = [_documents(stream, k) if k is not None else [] for k in numbers]
        arrays = pack_documents(whole, stream.length_at(first_sequence), stream.bos_id)
        return DocumentBatch(first_sequence, *arrays)
    places = np.array([b for b, k in enumerate(numbers) if k is not None], dtype=np.int64)
    known = np.array([k for k in numbers if k is not None], dtype=np.int64)
    length = stream.longest(known) if len(known) else stream.length_at(first_sequence)
    rows, used, gaps = _read_rows(stream, known, places, len(numbers), length + 1)
    return RowBatch(first_sequence, rows, used, stream.bos_id, gaps)


def read_batches(stream: Stream, firsts: Sequence[int], offset: int, size: int) -> list[Batch]:
    """Several batches at once, for less: the b-th is sequences [firsts[b] + offset, firsts[b] + offset + size).

    Raises DataError for bad data in any of them.
    """
    ranges = [range(first + offset, first + offset + size) for first in firsts]
    numbers = np.concatenate([np.arange(r.start, r.stop) for r in ranges])
    lengths = {stream.longest(numbers[i * size : (i + 1) * size]) for i in range(len(firsts))}
    if stream.whole_documents or len(lengths) > 1:
        return [read_sequences(stream, r, first) for r, first in zip(ranges, firsts, strict=True)]
    rows, used, gaps = _read_rows(stream, numbers, np.arange(len(numbers)), len(numbers), lengths.pop() + 1)
    batches: list[Batch] = []
    for begin, first in zip(range(0, len(numbers), size), firsts, strict=True):
        own = [(b - begin, start, stop) for b, start, stop in gaps if begin <= b < begin + size]
        part = slice(begin, begin + size)
        batches.append(RowBatch(first, rows[part], used[part], stream.bos_id, own))
    return batches


def _read_rows(
    stream: Stream, numbers: np.ndarray, places: np.ndarray, count: int, width: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int, int]]]:
    """Rows [count, width], with sequence numbers[i] in row places[i], and the `used` and `gaps` of a RowBatch."""
    rows = np.empty((count, width), dtype=stream.dtype)
    flat, used = rows.reshape(-1), [0] * count
    gaps: list[tuple[int, int, int]] = []
    for split, pieces in stream.locate_all(numbers):
        row_of, wanted = places[pieces.row].tolist(), pieces.block.tolist()
        starts, stops = pieces.start.tolist(), pieces.stop.tolist()
        passed = set()
        for first in range(0, len(wanted), split.blocks_at_once):
            blocks = split.read_blocks(wanted[first : first + split.blocks_at_once])
            # One copy a piece: this loop is where a fast reader spends its time.
            for i, block in enumerate(blocks, first):
                b, begin = row_of[i], used[row_of[i]]
                used[b] = end = begin + stops[i] - starts[i]
                flat[b * width + begin : b * width + end] = block[starts[i] : stops[i]]
                if begin:  # the sequence goes on from the block before
                    passed.add(wanted[i - 1])
        if passed:
            split.passed(passed)
        if split.has_quarantined:
            gaps += _gaps(split, pieces, row_of)
    filled = np.array(used)
    for b in np.flatnonzero(filled < width).tolist():
        rows[b, used[b] :] = stream.bos_id
    return rows, filled, gaps


def _gaps(split: Split, pieces: Pieces, row_of: list[int]) -> list[tuple[int, int, int]]:
    """(row, start, stop) of the pieces whose blocks are quarantined."""
    used: Counter[int] = Counter()
    found = []
    for b, block, size in zip(row_of, pieces.block.tolist(), (pieces.stop - pieces.start).tolist(), strict=True):
        if split.is_quarantined(block):
            found.append((b, used[b], used[b] + size))
        used[b] += size
    return found


def _documents(stream: Stream, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs and labels of each document in a sequence of whole ones; the end of a block ends its last document."""
    split, order, number = stream.find(k)
    pieces = order.locate(number)
    found = []
    for (block, start, stop), tokens in zip(pieces, split.read_blocks([piece.block for piece in pieces]), strict=True):
        if split.is_quarantined(block):
            found.append((tokens[start:stop], np.full(stop - start, IGNORE, dtype=np.int64)))
            continue
        labels = tokens[start + 1 : stop + 1].astype(np.int64)
        found.append((tokens[start:stop], labels if stop < len(tokens) else np.append(labels, stream.bos_id)))
    return found
