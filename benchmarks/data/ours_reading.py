"""Our loader as a contestant: every block's checksum is verified and the order is shuffled in each epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from benchmarks.data.driver import drive
from benchmarks.data.stream import BATCH, BOS, VOCABULARY
from data_pipeline.batch import IGNORE, Batch, RowBatch
from data_pipeline.dataset import Dataset
from data_pipeline.loader import Loader
from data_pipeline.schema import INDEX_FILE, TOKENIZER_FILE, Index, TokenizerInfo, content_hash
from data_pipeline.shards import SplitWriter

if TYPE_CHECKING:
    import torch

#: ``rows`` is ``raw`` without the step to torch, whose import costs a small measurement more than all the rest.
Form = Literal["raw", "full", "rows"]


def raw_batch(batch: Batch) -> torch.Tensor:
    """A batch as it is stored: uint16 [B, T + 1]."""
    import torch

    assert isinstance(batch, RowBatch)
    return torch.from_numpy(batch.rows)


def full_batch(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch as the model takes it: inputs and labels, int64 [B, T], and the documents, int32 [B, T]."""
    import torch

    return torch.from_numpy(batch.tokens), torch.from_numpy(batch.labels), torch.from_numpy(batch.documents)


class OurReader:
    """One epoch of :class:`~data_pipeline.loader.Loader` without a thread; its state is the number of sequences."""

    def __init__(self, path: str, length: int, form: Form, shuffle: bool = True) -> None:
        self._path, self._length, self._form, self._shuffle = Path(path), length, form, shuffle
        if self._form != "rows":
            import torch  # noqa: F401 - a process has imported its libraries before it is measured

    def open(self) -> None:
        """Open the dataset."""
        self._split = Dataset.open(self._path).split("train")

    def batches(self, state: Any) -> Iterator[Any]:
        """Batches of the rest of the epoch."""
        start = 0 if state is None else int(state["sequences"])
        loader = Loader(
            self._split,
            seq_len=self._length,
            global_batch=BATCH,
            shuffle=self._shuffle,
            start_sequence=start,
            prefetch=0,
        )
        for _ in range((loader.order.sequences_per_epoch - start) // BATCH):
            batch = next(loader)
            if self._form == "rows":
                assert isinstance(batch, RowBatch)
                yield batch.rows
            else:
                yield raw_batch(batch) if self._form == "raw" else full_batch(batch)[1]

    def state(self, consumed: int) -> Any:
        """What a checkpoint keeps."""
        return {"sequences": consumed * BATCH}

    def inputs(self, batch: Any) -> np.ndarray:
        """The labels: every token of the stream but its first is one exactly once in an epoch."""
        labels = np.asarray(batch)[:, -self._length :]
        return np.where(labels == IGNORE, 0, labels)


def read(path: str, length: int, form: Form, mode: str, shuffle: bool = True, **options: Any) -> dict[str, Any]:
    """See :func:`benchmarks.data.driver.drive`. Raises DataError for a damaged dataset."""
    return drive(OurReader(path, length, form, shuffle), mode, **options)


def write(stream: str, path: str, shard_bytes: int = 256 << 20, block_tokens: int = 65_536) -> dict[str, Any]:
    """Write the stream as a dataset of ours; gives its blocks. The ids are random, so no tokenizer belongs to them.

    Raises OSError.
    """
    directory = Path(path)
    (directory / "index").mkdir(parents=True)
    (directory / TOKENIZER_FILE).write_bytes(b"no tokenizer: the ids are random\n")
    sha256 = hashlib.sha256((directory / TOKENIZER_FILE).read_bytes()).hexdigest()
    tokenizer = TokenizerInfo(file=TOKENIZER_FILE, sha256=sha256, vocab_size=VOCABULARY, bos_id=BOS, kind="bpe")
    tokens = np.memmap(stream, dtype=np.uint16, mode="r")
    writer = SplitWriter(
        directory, "train", dtype="uint16", bos_id=BOS, block_tokens=block_tokens, shard_bytes=shard_bytes
    )
    starts = np.flatnonzero(tokens == BOS)
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], len(tokens)], strict=True)):
        writer.add(number.to_bytes(16, "little"), tokens[start + 1 : stop], 0, 0)
    splits: dict[Literal["train", "validation", "test"], Any] = {"train": writer.close()}
    index = Index(
        hash=content_hash("uint16", tokenizer, splits),
        dtype="uint16",
        block_tokens=block_tokens,
        tokenizer=tokenizer,
        splits=splits,
        report={},
        config={},
    )
    (directory / INDEX_FILE).write_text(index.to_json(), encoding="utf-8")
    return {"blocks": splits["train"].blocks, "bytes": splits["train"].tokens * 2}
