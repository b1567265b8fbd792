"""Plain WebDataset archives of raw text as batches, tokenized while they are read.

A quick way to train on shards that somebody else has made, for a look or a short run. It is **not exactly
resumable**: there is no index, so a position is reached only by reading up to it, what a rank reads depends on the
number of ranks, and the ranks' shares differ by what their archives hold. For a real run, index the archives once
with ``pha data index``: it tokenizes them into a dataset of our own format, and all guarantees hold from then on.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import numpy as np
from webdataset.filters import _shuffle

from data_pipeline.batch import Batch, RowBatch
from data_pipeline.documents import Document
from data_pipeline.errors import DataError
from data_pipeline.sources import SourceConfig, tars
from data_pipeline.sources.files import expand
from data_pipeline.sources.streams import File
from data_pipeline.tokenizer import Tokenizer

__all__ = ["archives", "stream_batches", "stream_documents"]

#: Keeps the two uses of one seed apart.
_ORDER, _BUFFER = 0, 1


def archives(sources: Sequence[str | SourceConfig]) -> list[str]:
    """The tar files that these paths and globs name, in order and without repetition.

    Raises DataError for URLs (``pipe:`` among them), paths that match nothing, and files that are no archives.
    """
    found = [file for source in sources for file in expand(SourceConfig.of(source))]
    for path, kind in found:
        if kind != "tar":
            raise DataError(f"{path} is a {kind} file and no tar archive: build a dataset from it with pha data build.")
    return list(dict.fromkeys(path for path, _ in found))


def stream_documents(
    paths: Sequence[str],
    settings: SourceConfig | None = None,
    *,
    seed: int = 0,
    epoch: int = 0,
    shuffle_buffer: int = 0,
) -> Iterator[Document]:
    """The documents of these archives once; in order, or with archives shuffled and mixed through a buffer.

    Args:
        paths: archives, as :func:`archives` gives them.
        settings: fields and limits to read with; its spec is not used.
        seed, epoch: of the shuffle; the order is the same for the same two numbers.
        shuffle_buffer: documents of the library's shuffle buffer, all held in memory; 0 keeps the stored order.

    Raises:
        DataError: an archive is damaged, cut short or unsafe; see :mod:`data_pipeline.sources.tars`.
    """
    paths = list(paths)
    if shuffle_buffer > 0:
        random.Random(f"{seed}:{epoch}:{_ORDER}").shuffle(paths)
    base = settings or SourceConfig(spec="tar")
    read = (
        document for path in paths for document in tars.read(base.model_copy(update={"spec": path}), File.local(path))
    )
    if shuffle_buffer <= 0:
        return read
    rng = random.Random(f"{seed}:{epoch}:{_BUFFER}")
    return _shuffle(read, bufsize=shuffle_buffer, initial=shuffle_buffer, rng=rng)


def stream_batches(
    sources: Sequence[str | SourceConfig],
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    epochs: int | None = 1,
    seed: int = 0,
    shuffle_buffer: int = 0,
    settings: SourceConfig | None = None,
) -> Iterator[Batch]:
    """Batches of `batch_size` sequences from the archives of this rank, tokenized on the fly.

    Documents are joined, each after a separator, and cut every `seq_len` tokens, across the borders of archives and
    epochs; what does not fill the last batch is left out. Rank r reads archives r, r + world, ...

    Args:
        sources: paths or globs of tar archives; see :func:`archives`.
        tokenizer: turns text into ids; its ``bos_id`` is the separator.
        seq_len: T, tokens of a sequence.
        batch_size: B, sequences of a batch on this rank.
        rank, world: this process and how many there are.
        epochs: how often to read everything; None for ever.
        seed, shuffle_buffer, settings: see :func:`stream_documents`.

    Returns:
        Batches as the indexed loader gives them; ``first_sequence`` counts `batch_size` × `world` a batch.

    Raises:
        DataError: there are fewer archives than ranks, a number is out of range, or an archive is damaged.
    """
    if seq_len < 1 or batch_size < 1 or not 0 <= rank < world or (epochs is not None and epochs < 1):
        raise DataError(
            f"seq_len {seq_len}, batch_size {batch_size} and epochs {epochs} must be at least 1, and rank {rank} in "
            f"[0, {world})."
        )
    paths = archives(sources)
    if len(paths) < world:
        raise DataError(
            f"{len(paths)} archive(s) cannot be shared by {world} ranks: use fewer ranks, or index them with "
            "pha data index, which has no such limit."
        )
    tokens = _tokens(paths[rank::world], tokenizer, epochs, seed, shuffle_buffer, settings)
    return _batches(tokens, tokenizer.bos_id, seq_len, batch_size, world)


def _tokens(
    paths: list[str],
    tokenizer: Tokenizer,
    epochs: int | None,
    seed: int,
    shuffle_buffer: int,
    settings: SourceConfig | None,
) -> Iterator[list[int]]:
    for epoch in itertools.count() if epochs is None else range(epochs):
        empty = True
        for document in stream_documents(paths, settings, seed=seed, epoch=epoch, shuffle_buffer=shuffle_buffer):
            empty = False
            yield [tokenizer.bos_id, *tokenizer.encode(document.text)]
        if empty:
            raise DataError(f"the archives {', '.join(paths)} hold no text: name others.")


def _batches(documents: Iterator[list[int]], bos_id: int, seq_len: int, batch_size: int, world: int) -> Iterator[Batch]:
    needed = batch_size * seq_len + 1  # sequence n is tokens [nT, nT + T], so that neighbours share one
    lengths = np.full(batch_size, seq_len + 1)
    waiting: list[int] = []
    for number in itertools.count():
        while len(waiting) < needed:
            ids = next(documents, None)
            if ids is None:
                return
            waiting += ids
        flat = np.array(waiting[:needed], dtype=np.int64)
        del waiting[: needed - 1]
        rows = np.lib.stride_tricks.sliding_window_view(flat, seq_len + 1)[::seq_len]
        yield RowBatch(number * batch_size * world, rows, lengths, bos_id)
