"""MosaicML streaming: MDS shards, shuffled by its default `py1e`, with and without its own data loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

from benchmarks.data.driver import drive, whole_rows
from benchmarks.data.stream import BATCH, SHARD, load


class MosaicReader:
    """Iterates the dataset and stacks 32 samples, or leaves that to StreamingDataLoader (`loader`)."""

    def __init__(self, path: str, length: int, loader: bool) -> None:
        self._path, self._length, self._by_loader = path, length, loader

    def open(self) -> None:
        """Open the dataset."""
        self._dataset = StreamingDataset(
            local=self._path, shuffle=True, shuffle_algo="py1e", shuffle_seed=0, batch_size=BATCH
        )
        self._loader = StreamingDataLoader(self._dataset, batch_size=BATCH) if self._by_loader else None

    def batches(self, state: Any) -> Iterator[torch.Tensor]:
        """Batches of the rest of the epoch."""
        if self._loader is not None:
            if state is not None:
                self._loader.load_state_dict(state)
            for batch in self._loader:
                yield batch["tokens"]
            return
        if state is not None:
            self._dataset.load_state_dict(state)
        rows: list[np.ndarray] = []
        for sample in self._dataset:
            rows.append(sample["tokens"])
            if len(rows) == BATCH:
                yield torch.from_numpy(np.stack(rows))
                rows = []

    def state(self, consumed: int) -> Any:
        """Its own state: five integers."""
        if self._loader is not None:
            return self._loader.state_dict()
        return self._dataset.state_dict(consumed * BATCH, from_beginning=True)

    inputs = staticmethod(whole_rows)


def read(path: str, length: int, loader: bool, mode: str, **options: Any) -> dict[str, Any]:
    """See :func:`benchmarks.data.driver.drive`."""
    return drive(MosaicReader(path, length, loader), mode, **options)


def write(stream: str, path: str, length: int) -> dict[str, Any]:
    """Write the stream as uncompressed MDS shards of 1,024 sequences with a column of fixed shape. Raises OSError."""
    rows = load(stream, length)
    columns = {"tokens": f"ndarray:uint16:{length}"}
    with MDSWriter(out=path, columns=columns, size_limit=SHARD * (length * 2 + 16)) as writer:
        for row in rows:
            writer.write({"tokens": np.asarray(row)})
    return {"sequences": len(rows)}
