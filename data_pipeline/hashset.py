"""A set of document hashes on disk: what deduplication and decontamination decide to drop."""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_pipeline.split import HASH_BYTES


def sort_order(hashes: np.ndarray) -> np.ndarray:
    """The order that sorts hashes (uint8 [count, 16]) as bytes: int64 [count]."""
    halves = np.ascontiguousarray(hashes).reshape(-1, HASH_BYTES).view(">u8").astype(np.uint64)
    return np.lexsort((halves[:, 1], halves[:, 0]))


class HashSet:
    """Sorted 16-byte hashes in a file that is mapped, not loaded: a look-up costs log2(size) reads of one page.

    Raises OSError if the file cannot be read, and ValueError if it is no whole number of hashes.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size % HASH_BYTES:
                raise ValueError(f"{path} has {size} bytes, which is no multiple of {HASH_BYTES}")
            self._data: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        self._count = size // HASH_BYTES

    @classmethod
    def write(cls, path: Path, hashes: np.ndarray) -> HashSet:
        """Store hashes (uint8 [count, 16], in any order, without repetition) at `path` and open them."""
        hashes[sort_order(hashes)].tofile(path)
        return cls(path)

    @classmethod
    def of(cls, path: Path, hashes: Iterable[bytes]) -> HashSet:
        """As :meth:`write`, from single hashes, repetitions allowed."""
        data = b"".join(sorted(set(hashes)))
        return cls.write(path, np.frombuffer(data, np.uint8).reshape(-1, HASH_BYTES))

    def contains(self, document_hash: bytes) -> bool:
        """Whether the set holds this hash."""
        place = bisect_left(self, document_hash)
        return place < self._count and self[place] == document_hash

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> bytes:
        return self._data[place * HASH_BYTES : (place + 1) * HASH_BYTES]

    def __iter__(self) -> Iterator[bytes]:
        """The hashes in ascending order."""
        return (self[place] for place in range(self._count))
