"""Batches for training and evaluation, each a pure function of its place in the order.

There is nothing to save: a run that has consumed n sequences continues with ``start_sequence=n``, on any number of
ranks that divides the batch and at the same cost for every n.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from data_pipeline.batch import Batch, read_batches, read_sequences
from data_pipeline.dataset import Split
from data_pipeline.errors import DataError
from data_pipeline.storage import DamagedData
from data_pipeline.stream import Stream

#: Rows that are read together, and their tokens, at most: finding many places costs hardly more than finding one.
_ROWS_AT_ONCE, _TOKENS_AT_ONCE = 256, 1 << 20
#: How often (s) a waiting prefetcher looks whether it shall stop.
_POLL = 0.05


class Loader:
    """An endless iterator over this rank's part of the global batches, read ahead by a thread.

    Args:
        source: what to read: a split, or a stream, which has its own sequence length, lanes, seed and shuffle.
        seq_len: T, tokens of a sequence of a split.
        global_batch: G, sequences of a batch over all ranks; or its values as (first step, G), the first from step 0.
        lanes: L of :class:`~data_pipeline.order.Order`; None takes G. Keep it when G changes, to keep the order.
        seed, shuffle: of the order.
        rank, world: this process and how many there are; `world` must divide every G.
        start_sequence: sequences that were consumed before, over all ranks.
        start_step: batches that were; it only chooses among several G.
        prefetch: batches read ahead; 0 reads in the caller's thread.

    Attributes:
        stream: what is read.
        order: the order that is followed, in a mixture that of its first component.
        sequences_consumed: over all ranks, those before `start_sequence` included: what a checkpoint must hold.
        wait_seconds: how long calls of ``next`` have waited for data.

    Raises:
        DataError: `world` does not divide `global_batch`, or a number is out of range.
    """

    def __init__(
        self,
        source: Split | Stream,
        *,
        seq_len: int | None = None,
        global_batch: int | Sequence[tuple[int, int]],
        lanes: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        start_sequence: int = 0,
        start_step: int = 0,
        prefetch: int = 2,
    ) -> None:
        self._sizes = [(0, global_batch)] if isinstance(global_batch, int) else list(global_batch)
        for _, size in self._sizes:
            if size < 1 or world < 1 or size % world:
                raise DataError(
                    f"the global batch of {size} sequences cannot be shared equally by {world} rank(s): choose a "
                    f"batch that is a multiple of {world}."
                )
        if not 0 <= rank < world or start_sequence < 0 or start_step < 0 or prefetch < 0:
            raise DataError(
                f"rank {rank} must be in [0, {world}), and start_sequence {start_sequence}, start_step {start_step} "
                f"and prefetch {prefetch} must not be negative."
            )
        if isinstance(source, Stream):
            self.stream = source
        elif seq_len is None:
            raise DataError("a loader of a split needs seq_len.")
        else:
            first_size = self._sizes[0][1]
            splits = {source.name: source}
            self.stream = Stream(splits, seq_len=seq_len, lanes=lanes or first_size, seed=seed, shuffle=shuffle)
        self.order = self.stream.orders[0]
        self.sequences_consumed = start_sequence
        self.wait_seconds = 0.0
        self._step, self._rank, self._world, self._prefetch = start_step, rank, world, prefetch
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=max(1, prefetch))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._batches = self._all_batches(start_sequence, start_step)

    @property
    def padding_share(self) -> float:
        """The share of labels that is padding, over whole epochs."""
        return self.stream.padding_share

    def batch_size(self, step: int) -> int:
        """G of a step."""
        return [size for first, size in self._sizes if first <= step][-1]

    def read(self, first_sequence: int, step: int | None = None) -> Batch:
        """This rank's part of the global batch that begins with that sequence, read now; changes nothing.

        `step` chooses among several G; None is the step of the next batch. Raises DataError if the data is damaged.
        """
        local = self.batch_size(self._step if step is None else step) // self._world
        first = first_sequence + self._rank * local
        return read_sequences(self.stream, range(first, first + local), first_sequence)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        """The next batch. Raises the error that reading it met, now and ever after; RuntimeError when closed."""
        if self._stop.is_set():
            raise RuntimeError("the loader is closed")
        started = time.perf_counter()
        batch = self._next()
        self.wait_seconds += time.perf_counter() - started
        self.sequences_consumed = batch.first_sequence + self.batch_size(self._step)
        self._step += 1
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
        try:
            if self._prefetch == 0:
                return next(self._batches)
            if self._thread is None:  # not before it is needed: a loader may serve only for read()
                self._thread = threading.Thread(target=self._read_ahead, name="loader", daemon=True)
                self._thread.start()
            found = self._queue.get()
            if isinstance(found, BaseException):
                raise found
        except BaseException as error:
            self._failure = error
            raise
        return found

    def _all_batches(self, first: int, step: int) -> Iterator[Batch]:
        """This rank's parts of all global batches from this sequence and step on, read some at a time."""
        while True:
            size = self.batch_size(step)
            local = size // self._world
            most = min(_ROWS_AT_ONCE, _TOKENS_AT_ONCE // self.stream.length_at(first))
            count = 1
            while (count + 1) * local <= most and self.batch_size(step + count) == size:
                count += 1
            firsts = range(first, first + count * size, size)
            try:
                yield from read_batches(self.stream, firsts, self._rank * local, local)
            except DamagedData:  # up to the one that is damaged; a server out of reach is not asked again
                for number, begin in enumerate(firsts):
                    yield self.read(begin, step + number)
            first, step = first + count * size, step + count

    def _read_ahead(self) -> None:
        while not self._stop.is_set():
            try:
                found: Batch | BaseException = next(self._batches)
            except BaseException as error:  # handed to the consumer, in the place of its batch
                found = error
            self._put(found)
            if isinstance(found, BaseException):
                return

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
    stream = Stream({split.name: split}, seq_len=seq_len, lanes=1, shuffle=False)
    order = stream.orders[0]
    total = min(order.sequences_per_epoch, limit_sequences or order.sequences_per_epoch)
    batches = -(-total // (world * batch_size))
    for batch in range(batches):
        first = batch * batch_size * world
        numbers = (first + i * world + rank for i in range(batch_size))
        yield read_sequences(stream, [k if k < total else None for k in numbers], first)
