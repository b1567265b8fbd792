"""A flat file, mapped, read through a shuffled index, as Megatron-LM does: the bound for what checks nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.data.driver import drive, whole_rows
from benchmarks.data.stream import BATCH, load


class MemmapReader:
    """Sequences by a permutation of their numbers; `fancy` takes a batch by one index, else sample by sample."""

    def __init__(self, path: str, length: int, fancy: bool) -> None:
        self._path, self._length, self._fancy = path, length, fancy

    def open(self) -> None:
        """Map the file."""
        self._rows = load(self._path, self._length)

    def batches(self, state: Any) -> Iterator[torch.Tensor]:
        """Batches of the rest of the epoch."""
        order = np.random.default_rng(0).permutation(len(self._rows))
        first = 0 if state is None else int(state["samples"])
        for start in range(first, len(order) - BATCH + 1, BATCH):
            numbers = order[start : start + BATCH]
            if self._fancy:
                yield torch.from_numpy(np.asarray(self._rows[numbers]))
            else:
                yield torch.from_numpy(np.stack([self._rows[number] for number in numbers]))

    def state(self, consumed: int) -> Any:
        """What Megatron calls consumed samples."""
        return {"samples": consumed * BATCH}

    inputs = staticmethod(whole_rows)


def read(path: str, length: int, fancy: bool, mode: str, **options: Any) -> dict[str, Any]:
    """See :func:`benchmarks.data.driver.drive`."""
    return drive(MemmapReader(path, length, fancy), mode, **options)
