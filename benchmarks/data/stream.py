"""The token stream that every reader reads, whatever its format, and digests that tell whether it was read whole."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np

#: The separator that begins a document, and the ids below which the others lie.
BOS, VOCABULARY = 1, 32_000
_MEAN_DOCUMENT = 1_000
_CHUNK = 1 << 22
#: Sequences of a batch, the same for every reader.
BATCH = 32
#: Sequences of a shard, in formats that have shards.
SHARD = 1_024


def write(path: str, sequences: int, length: int, seed: int) -> dict[str, Any]:
    """Write a flat file of N·T + 1 seeded random uint16 ids in documents of 1,000 tokens on average.

    Returns the digests of its tokens and of its sequences. Raises OSError.
    """
    total, generator = sequences * length + 1, np.random.default_rng(seed)
    with Path(path).open("wb") as file:
        for first in range(0, total, _CHUNK):
            ids = generator.integers(2, VOCABULARY, min(_CHUNK, total - first), dtype=np.uint16)
            ids[generator.random(len(ids)) < 1 / _MEAN_DOCUMENT] = BOS
            if first == 0:
                ids[0] = BOS
            file.write(ids.tobytes())
    digest = Digest()
    for number in range(0, sequences, 64):
        digest.add(load(path, length)[number : number + 64])
    labels = Digest()
    labels.add(np.memmap(path, dtype=np.uint16, mode="r")[1:].reshape(sequences, length))
    return {"rows": digest.rows, "order": digest.order, "labels": labels.tokens, "count": digest.count}


def load(path: str, length: int) -> np.ndarray:
    """The stream as sequences, uint16 [N, T], mapped; the last token, only a label, is left out."""
    flat = np.memmap(path, dtype=np.uint16, mode="r")
    return flat[: (len(flat) - 1) // length * length].reshape(-1, length)


class Digest:
    """Sums up sequences as they come: how many, which ones in any order, and which in this order."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = self._order = 0
        self._histogram = np.zeros(1 << 16, dtype=np.int64)

    def add(self, rows: np.ndarray) -> None:
        """Take sequences, any integers below 2^16 [B, T]."""
        for row in rows:
            checksum = zlib.crc32(np.ascontiguousarray(row, dtype=np.uint16).data)
            self._sum = (self._sum + checksum) % (1 << 64)
            self._order = zlib.crc32(checksum.to_bytes(4, "little"), self._order)
            self.count += 1
        self._histogram += np.bincount(rows.ravel().astype(np.int64), minlength=1 << 16)

    @property
    def rows(self) -> str:
        """Equal for the same sequences in any order."""
        return f"{self.count}:{self._sum:016x}"

    @property
    def order(self) -> str:
        """Equal for the same sequences in the same order."""
        return f"{self._order:08x}"

    @property
    def tokens(self) -> str:
        """Equal for the same tokens, however they are cut into sequences."""
        return hashlib.sha256(self._histogram.tobytes()).hexdigest()[:16]


def fingerprint(rows: np.ndarray) -> str:
    """A hash of one batch, equal for equal ids whatever their type."""
    return hashlib.sha256(np.ascontiguousarray(rows, dtype=np.uint16).tobytes()).hexdigest()[:16]
