"""Batches for training and evaluation, each a pure function of its place in the order.

There is nothing to save: a run that has consumed n sequences continues with ``start_sequence=n``, on any number of
ranks that divides the batch and at the same cost for every n.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from data_pipeline.dataset import Split
from data_pipeline.errors import DataError
from data_pipeline.order import Order
from data_pipeline.pack import IGNORE, pack_rows

__all__ = ["IGNORE", "Batch", "Loader", "evaluation_batches"]

#: How often (s) a waiting prefetcher looks whether it shall stop.
_POLL = 0.05


@dataclass
class Batch:
    """One rank's part of a global batch; see :func:`data_pipeline.pack.pack_rows` for the arrays.

    Attributes:
        tokens: int64 [B, T], inputs.
        labels: int64 [B, T], the token after each input, or IGNORE.
        documents: int32 [B, T], number of the document within its row.
        first_sequence: global number of the first sequence of the *global* batch, the same on every rank.
    """

    tokens: np.ndarray
    labels: np.ndarray
    documents: np.ndarray
    first_sequence: int


def read_sequences(split: Split, order: Order, numbers: Sequence[int | None], first_sequence: int) -> Batch:
    """The sequences of these global numbers as a batch; None gives a row of padding. Raises DataError for bad data."""
    rows = np.full((len(numbers), order.seq_len + 1), split.bos_id, dtype=np.int64)
    lengths = np.zeros(len(numbers), dtype=np.int64)
    holes: list[tuple[int, int, int]] = []
    for b, k in enumerate(numbers):
        used = 0
        for block, start, stop in order.locate(k) if k is not None else ():
            rows[b, used : used + stop - start] = split.read_block(block)[start:stop]
            if split.is_quarantined(block):
                holes.append((b, used, used + stop - start))
            used += stop - start
        lengths[b] = used
    tokens, labels, documents = pack_rows(rows, lengths, split.bos_id)
    for b, begin, end in holes:  # neither predict a token that is not known, nor from one
        labels[b, max(0, begin - 1) : end] = IGNORE
    return Batch(tokens, labels, documents, first_sequence)


class Loader:
    """An endless iterator over this rank's part of the global batches, read ahead by a thread.

    Args:
        split: what to read.
        seq_len: T, tokens of a sequence.
        global_batch: G, sequences of a batch over all ranks.
        lanes: L of :class:`~data_pipeline.order.Order`; None takes G. Keep it when G changes, to keep the order.
        seed, shuffle: of the order.
        rank, world: this process and how many there are; `world` must divide G.
        start_sequence: sequences that were consumed before, over all ranks.
        prefetch: batches read ahead; 0 reads in the caller's thread.

    Attributes:
        order: the order that is followed.
        sequences_consumed: over all ranks, those before `start_sequence` included: what a checkpoint must hold.
        wait_seconds: how long calls of ``next`` have waited for data.

    Raises:
        DataError: `world` does not divide `global_batch`, or a number is out of range.
    """

    def __init__(
        self,
        split: Split,
        *,
        seq_len: int,
        global_batch: int,
        lanes: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        start_sequence: int = 0,
        prefetch: int = 2,
    ) -> None:
        if global_batch < 1 or world < 1 or global_batch % world:
            raise DataError(
                f"the global batch of {global_batch} sequences cannot be shared equally by {world} rank(s): choose a "
                f"batch that is a multiple of {world}."
            )
        if not 0 <= rank < world or start_sequence < 0 or prefetch < 0:
            raise DataError(
                f"rank {rank} must be in [0, {world}), and start_sequence {start_sequence} and prefetch {prefetch} "
                "must not be negative."
            )
        self.order = Order(split.block_tokens, seq_len, lanes or global_batch, seed, shuffle)
        self.sequences_consumed = start_sequence
        self.wait_seconds = 0.0
        self._split, self._global_batch, self._prefetch = split, global_batch, prefetch
        self._local = global_batch // world
        self._offset = rank * self._local
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=max(1, prefetch))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def read(self, first_sequence: int) -> Batch:
        """This rank's part of the global batch that begins with that sequence, read now; changes nothing.

        Raises DataError if the data is damaged.
        """
        first = first_sequence + self._offset
        return read_sequences(self._split, self.order, range(first, first + self._local), first_sequence)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        """The next batch. Raises the error that reading it met, now and ever after; RuntimeError when closed."""
        if self._stop.is_set():
            raise RuntimeError("the loader is closed")
        started = time.perf_counter()
        batch = self._next()
        self.wait_seconds += time.perf_counter() - started
        self.sequences_consumed = batch.first_sequence + self._global_batch
        return batch

    def close(self) -> None:
        """Stop reading ahead and wait for the thread to end. Safe to call twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next(self) -> Batch:
        if self._failure is not None:
            raise self._failure
        if self._prefetch == 0:
            return self.read(self.sequences_consumed)
        if self._thread is None:  # not before it is needed: a loader may serve only for read()
            arguments = (self.sequences_consumed,)
            self._thread = threading.Thread(target=self._read_ahead, args=arguments, name="loader", daemon=True)
            self._thread.start()
        found = self._queue.get()
        if isinstance(found, BaseException):
            self._failure = found
            raise found
        return found

    def _read_ahead(self, first_sequence: int) -> None:
        while not self._stop.is_set():
            try:
                found: Batch | BaseException = self.read(first_sequence)
            except BaseException as error:  # handed to the consumer, in the place of its batch
                found = error
            self._put(found)
            if isinstance(found, BaseException):
                return
            first_sequence += self._global_batch

    def _put(self, item: Batch | BaseException) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL)
                return
            except queue.Full:
                continue


def evaluation_batches(
    split: Split, seq_len: int, batch_size: int, rank: int = 0, world: int = 1, limit_sequences: int | None = None
) -> Iterator[Batch]:
    """A split once, in stored order, shared by the ranks: every label is in exactly one batch of one rank.

    Sequence i goes to rank i mod world. All ranks get equally many batches of `batch_size` rows (so that collective
    calls match); missing rows are padding without labels. `limit_sequences` reads only the first of them.

    Raises DataError if a number is out of range or the data is damaged.
    """
    if batch_size < 1 or not 0 <= rank < world or (limit_sequences is not None and limit_sequences < 1):
        raise DataError(
            f"batch_size {batch_size} and limit_sequences {limit_sequences} must be at least 1 and rank {rank} in "
            f"[0, {world})."
        )
    order = Order(split.block_tokens, seq_len, lanes=1, seed=0, shuffle=False)
    total = min(order.sequences_per_epoch, limit_sequences or order.sequences_per_epoch)
    batches = -(-total // (world * batch_size))
    for batch in range(batches):
        first = batch * batch_size * world
        numbers = (first + i * world + rank for i in range(batch_size))
        yield read_sequences(split, order, [k if k < total else None for k in numbers], first)
