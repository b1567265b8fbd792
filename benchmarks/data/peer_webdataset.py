"""The plain webdataset library: shards shuffled, then a shuffle buffer of 1,024 sequences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset

from benchmarks.data.driver import drive, whole_rows
from benchmarks.data.stream import BATCH, SHARD, load

#: Sequences in the shuffle buffer.
BUFFER = 1_024


class WebReader:
    """Reads `.bin` members of `members` sequences each; has no state, so a resume reads and drops what was consumed."""

    def __init__(self, path: str, length: int, members: int) -> None:
        self._path, self._length, self._members = path, length, members

    def open(self) -> None:
        """Make the pipeline, seeded so that a second process sees the same order."""
        urls = sorted(str(file) for file in Path(self._path).glob("*.tar"))
        dataset = webdataset.WebDataset(urls, shardshuffle=len(urls), detshuffle=True, seed=0, empty_check=False)
        held = max(1, BUFFER // self._members)
        self._pipeline = dataset.shuffle(held, seed=0).to_tuple("bin")

    def batches(self, state: Any) -> Iterator[torch.Tensor]:
        """Batches of the rest of the epoch."""
        samples: Iterator[np.ndarray] = (np.frombuffer(data, dtype=np.uint16) for (data,) in self._pipeline)
        batches = self._of_one(samples) if self._members == 1 else self._of_many(samples)
        for number, batch in enumerate(batches):
            if state is None or number >= int(state["batches"]):
                yield batch

    def _of_one(self, samples: Iterator[np.ndarray]) -> Iterator[torch.Tensor]:
        rows: list[np.ndarray] = []
        for sample in samples:
            rows.append(sample)
            if len(rows) == BATCH:
                yield torch.from_numpy(np.stack(rows))
                rows = []

    def _of_many(self, samples: Iterator[np.ndarray]) -> Iterator[torch.Tensor]:
        for sample in samples:
            rows = sample.reshape(-1, self._length)
            for start in range(0, len(rows), BATCH):
                yield torch.from_numpy(rows[start : start + BATCH].copy())  # the member's bytes are read-only

    def state(self, consumed: int) -> Any:
        """How many batches to drop."""
        return {"batches": consumed}

    inputs = staticmethod(whole_rows)


def read(path: str, length: int, members: int, mode: str, **options: Any) -> dict[str, Any]:
    """See :func:`benchmarks.data.driver.drive`."""
    return drive(WebReader(path, length, members), mode, **options)


def write(stream: str, path: str, length: int, members: int) -> dict[str, Any]:
    """Write the stream as shards of 1,024 sequences, `members` sequences a member. Raises OSError."""
    rows = load(stream, length)
    Path(path).mkdir(parents=True)
    for shard, first in enumerate(range(0, len(rows), SHARD)):
        with (
            Path(path, f"train-{shard:06d}.tar").open("wb") as file,
            webdataset.TarWriter(file, encoder=False) as writer,
        ):
            for start in range(first, min(first + SHARD, len(rows)), members):
                writer.write({"__key__": f"{start:09d}", "bin": rows[start : start + members].tobytes()})
    return {"sequences": len(rows)}
