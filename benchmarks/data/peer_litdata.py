"""LitData: chunks of tokens read by its TokensLoader, shuffled, with and without its own data loader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
from litdata.streaming import Cache

from benchmarks.data.driver import drive, whole_rows
from benchmarks.data.stream import BATCH, SHARD, load


class LitReader:
    """Iterates the dataset and stacks 32 samples, or leaves that to StreamingDataLoader (`loader`)."""

    def __init__(self, path: str, length: int, loader: bool) -> None:
        self._path, self._length, self._by_loader = path, length, loader

    def open(self) -> None:
        """Open the dataset."""
        self._dataset = StreamingDataset(
            self._path, item_loader=TokensLoader(block_size=self._length), shuffle=True, seed=0
        )
        self._loader = StreamingDataLoader(self._dataset, batch_size=BATCH, num_workers=0) if self._by_loader else None

    def batches(self, state: Any) -> Iterator[torch.Tensor]:
        """Batches of the rest of the epoch."""
        if self._loader is not None:
            if state is not None:
                self._loader.load_state_dict(state)
            yield from self._loader
            return
        if state is not None:
            self._dataset.load_state_dict(state)
        rows: list[torch.Tensor] = []
        for sample in self._dataset:
            rows.append(sample)
            if len(rows) == BATCH:
                yield torch.stack(rows)
                rows = []

    def state(self, consumed: int) -> Any:
        """Its own state."""
        if self._loader is not None:
            return self._loader.state_dict()
        return self._dataset.state_dict(consumed * BATCH, num_workers=0, batch_size=BATCH)

    inputs = staticmethod(whole_rows)


def read(path: str, length: int, loader: bool, mode: str, **options: Any) -> dict[str, Any]:
    """See :func:`benchmarks.data.driver.drive`."""
    return drive(LitReader(path, length, loader), mode, **options)


def write(stream: str, path: str, length: int) -> dict[str, Any]:
    """Write the stream as chunks of 1,024 sequences of tokens. Raises OSError."""
    rows = load(stream, length)
    Path(path).mkdir(parents=True)
    cache = Cache(input_dir=path, chunk_size=SHARD * length, item_loader=TokensLoader(block_size=length))
    for number, row in enumerate(rows):
        cache[number] = torch.from_numpy(np.array(row))
    cache.done()
    cache.merge()
    return {"sequences": len(rows)}
