"""A bounded cache on a local disk, shared by the ranks of a node and safe against their crashes.

An entry is a file whose name is the SHA-256 of what it holds a copy of; it appears by rename, after fsync, so a reader
sees a whole entry or none, and two writers of one entry only write the same bytes twice. The one lock guards the
count of bytes and dies with its process. An entry is counted before it is renamed into place: after a crash the count
is too high, never too low, and the next clearing, which lists the files, puts it right. A writer that dies leaves at
most one temporary file, which a later clearing removes.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipeline.checksum import crc32
from data_pipeline.errors import DataError

log = logging.getLogger(__name__)

#: Clearing goes down to this share of the budget, so that it is not needed again at once.
_AFTER_CLEARING = 0.9
#: A temporary file that is older (s) belongs to a writer that is gone.
_ABANDONED = 600.0


class BlockCache:
    """Blocks in `directory`, of at most `budget` bytes together; the least recently used leave first. Thread-safe.

    Attributes:
        directory: shared by all processes of a machine that read the same data.
        counters: hits, misses, writes, `damaged` entries that were thrown away, `failures` to write.

    Raises:
        DataError: the directory cannot be made.
    """

    def __init__(self, directory: Path, budget: int) -> None:
        self.directory, self.budget = directory, budget
        self.counters: Counter[str] = Counter()
        self._numbers = itertools.count()
        self._warned = False
        try:
            (directory / "blocks").mkdir(parents=True, exist_ok=True)
            (directory / "count").touch()
        except OSError as error:
            raise DataError(
                f"the cache {directory} cannot be made ({error.strerror}): choose another data.cache_dir."
            ) from error

    @staticmethod
    def key(*parts: str | int) -> str:
        """The name of an entry: SHA-256 over what decides its content (location, dataset hash, shard, range)."""
        return hashlib.sha256("\0".join(str(part) for part in parts).encode()).hexdigest()

    def get(self, key: str, size: int, checksum: int) -> bytes | None:
        """The entry if it is there and has that size and CRC-32; a damaged one is thrown away."""
        file = self._file(key)
        try:
            data = file.read_bytes()
        except OSError:
            self.counters["misses"] += 1
            return None
        if len(data) != size or crc32(data) != checksum:
            self.counters["damaged"] += 1
            self.discard(key)
            return None
        with suppress(OSError):  # another process may have cleared it
            os.utime(file)
        self.counters["hits"] += 1
        return data

    def put(self, key: str, data: bytes) -> None:
        """Store an entry. A full or broken disk is logged once and otherwise ignored: the data is at hand anyway."""
        if len(data) > self.budget:
            return
        file = self._file(key)
        temporary = file.with_name(f"{key}.{os.getpid()}-{threading.get_ident()}-{next(self._numbers)}.tmp")
        try:
            file.parent.mkdir(exist_ok=True)
            try:
                with temporary.open("xb") as handle:
                    handle.write(data)
                    handle.flush()
                    os.fsync(handle.fileno())
                self._publish(temporary, file, len(data))
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            self.counters["writes"] += 1
        except OSError as error:
            self.counters["failures"] += 1
            if not self._warned:
                log.warning(
                    "The cache %s cannot be written to (%s); reading goes on without it.", self.directory, error
                )
                self._warned = True

    def discard(self, key: str) -> None:
        """Forget an entry."""
        with suppress(OSError):
            self._file(key).unlink(missing_ok=True)

    def size(self) -> int:
        """Bytes of all entries now, found by listing them."""
        return sum(size for _, size, _ in self._entries())

    def _file(self, key: str) -> Path:
        return self.directory / "blocks" / key[:2] / key

    def _entries(self) -> list[tuple[float, int, Path]]:
        found = []
        for folder in (self.directory / "blocks").iterdir():
            for file in folder.iterdir():
                with suppress(FileNotFoundError):
                    status = file.stat()
                    found.append((status.st_mtime, status.st_size, file))
        return sorted(found)

    def _publish(self, temporary: Path, file: Path, size: int) -> None:
        """Make room for `size` bytes, count them and let the entry appear."""
        with self._locked() as descriptor:
            stored = os.pread(descriptor, 20, 0)
            counted = int(stored) if stored.strip().isdigit() else self.budget  # unknown: list the files
            if counted + size > self.budget:
                counted = self._clear(max(0, min(self.budget - size, int(self.budget * _AFTER_CLEARING))))
            os.pwrite(descriptor, b"%20d" % (counted + size), 0)
            temporary.replace(file)

    def _clear(self, target: int) -> int:
        """Remove the oldest entries until at most `target` bytes are left; returns what is left."""
        entries = self._entries()
        total = sum(size for _, size, _ in entries)
        for modified, size, file in entries:
            abandoned = file.suffix == ".tmp" and time.time() - modified > _ABANDONED
            if not abandoned and (total <= target or file.suffix == ".tmp"):
                continue
            file.unlink(missing_ok=True)
            total -= size
        return total

    @contextmanager
    def _locked(self) -> Iterator[int]:
        descriptor = os.open(self.directory / "count", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # let go when the process dies
            yield descriptor
        finally:
            os.close(descriptor)
