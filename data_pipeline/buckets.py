"""The corpus between reading and writing: on disk, cut by document hash into buckets that fit in memory.

Documents arrive in any order and leave in the order of their hash. That one detour shuffles the corpus, brings exact
duplicates together and makes the result independent of the order of the sources, with memory of one bucket: about
1/256 of the text, 160 MB for OpenWebText's 40 GB.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from data_pipeline.split import HASH_BYTES

#: One for each value of the hash's first byte.
BUCKETS = 256
_RECORD = struct.Struct(f"<{HASH_BYTES}sHI")


@dataclass(frozen=True, order=True)
class Record:
    """A kept document: its hash, the number of its source in the sorted list of sources, and its text in UTF-8."""

    hash: bytes
    source: int
    data: bytes


class Buckets:
    """Temporary files below `directory`: filled by :meth:`add`, closed by :meth:`finish`, then read one by one."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._paths = [directory / f"{number:02x}" for number in range(BUCKETS)]
        self._files: list[IO[bytes]] = [path.open("wb") for path in self._paths]

    def add(self, record: Record) -> None:
        """Append a document (at most 4 GiB of text)."""
        file = self._files[record.hash[0]]
        file.write(_RECORD.pack(record.hash, record.source, len(record.data)))
        file.write(record.data)

    def finish(self) -> None:
        """No more documents: flush and close. Safe to call twice, and after a failure."""
        files, self._files = self._files, []
        for file in files:
            file.close()

    def read(self, number: int) -> Iterator[tuple[Record, bool]]:
        """The bucket's records by hash, each with whether it is a duplicate of the one before.

        Of equal texts the one of the first source in sorted order counts as the original, whatever came first.
        """
        previous = b""
        for record in sorted(self._load(number)):
            yield record, record.hash == previous
            previous = record.hash

    def remove(self, number: int) -> None:
        """Delete a bucket that is done, so that the disk never holds the whole text and all shards at once."""
        self._paths[number].unlink()

    def _load(self, number: int) -> Iterator[Record]:
        with self._paths[number].open("rb") as file:
            while header := file.read(_RECORD.size):
                hash_, source, length = _RECORD.unpack(header)
                yield Record(hash_, source, file.read(length))
