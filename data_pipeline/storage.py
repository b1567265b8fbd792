"""Where the files of a dataset lie: a directory, an HTTP(S) folder or an S3 prefix, behind one small interface.

Only the schemes that are listed here exist. Nothing in a location is ever run (``pipe:`` is refused like any other
unknown scheme), and nothing that a dataset's index says can name a file outside the location.
"""

from __future__ import annotations

import os
import re
import threading
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from data_pipeline.errors import DataError

if TYPE_CHECKING:
    from data_pipeline.remote import RetryPolicy

#: What every sentence about a damaged file ends with.
REMEDY = "restore the file from a copy, or remove the dataset and rebuild with pha data build"
SCHEMES = ("file", "http", "https", "s3")
#: Open files; below the usual limit of 1,024 descriptors a process.
_OPEN_FILES = 128
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class DamagedData(DataError):
    """The stored bytes themselves are wrong or gone, so that every reader finds the same and no retry helps.

    Told apart from a place that cannot be reached just now, because only this may be quarantined: which blocks are
    left out must not depend on one rank's bad connection.
    """


class Storage(ABC):
    """Read-only files by name (``/`` separates parts). Thread-safe; usable after ``fork``.

    Attributes:
        location: what the user gave, for messages.
        at_once: reads that gain from being made at the same time; 1 where there is no latency to hide.
        counters: requests, bytes, retries and faults by kind, as far as the kind of storage knows them.
    """

    at_once = 1

    def __init__(self, location: str | Path) -> None:
        self.location = location
        self.counters: Counter[str] = Counter()

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file. Raises DamagedData if it is missing, DataError if it cannot be reached."""

    @abstractmethod
    def read(self, name: str, limit: int) -> bytes:
        """A whole file of at most `limit` bytes. Raises like :meth:`size`, and DataError if it is larger."""

    @abstractmethod
    def read_range(self, name: str, offset: int, length: int, total: int | None = None, fresh: bool = False) -> bytes:
        """Exactly `length` bytes from `offset` on.

        Args:
            name: of the file.
            offset, length: in bytes.
            total: the size that the file must have, checked where an answer tells it.
            fresh: pass over caches on the way.

        Raises:
            DamagedData: the file is missing or too short.
            DataError: it cannot be read now.
        """

    def shown(self, name: str) -> str:
        """The file as it appears in messages."""
        return f"{str(self.location).rstrip('/')}/{name}"

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections; they come back when needed. Safe to call twice."""


class LocalStorage(Storage):
    """A directory, read by ``pread`` through a bounded number of open files."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.directory = directory
        self._files: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def size(self, name: str) -> int:
        """See :meth:`Storage.size`."""
        try:
            return (self.directory / check_name(name)).stat().st_size
        except OSError as error:
            raise self._explain(name, error) from error

    def read(self, name: str, limit: int) -> bytes:
        """See :meth:`Storage.read`."""
        size = self.size(name)
        if size > limit:
            raise DataError(f"{self.shown(name)} has {size} bytes, more than the {limit} it may have: {REMEDY}.")
        return self.read_range(name, 0, size)

    def read_range(self, name: str, offset: int, length: int, total: int | None = None, fresh: bool = False) -> bytes:
        """See :meth:`Storage.read_range`."""
        try:
            with self._lock:  # so that no other thread closes the file meanwhile
                descriptor = self._open(check_name(name))
                data = os.pread(descriptor, length, offset)
                while data and len(data) < length:  # one call returns at most 2 GiB
                    more = os.pread(descriptor, length - len(data), offset + len(data))
                    if not more:
                        break
                    data += more
        except OSError as error:
            raise self._explain(name, error) from error
        if len(data) < length:
            raise DamagedData(f"{self.shown(name)} is cut short")
        return data

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def _open(self, name: str) -> int:
        descriptor = self._files.get(name)
        if descriptor is not None:
            self._files.move_to_end(name)
            return descriptor
        if len(self._files) >= _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        descriptor = self._files[name] = os.open(self.directory / name, os.O_RDONLY)
        return descriptor

    def _explain(self, name: str, error: OSError) -> DataError:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return DamagedData(f"{self.shown(name)} is missing")
        return DataError(f"{self.shown(name)} cannot be read ({error.strerror}): check the disk and its permissions.")


def open_storage(location: str | Path, policy: RetryPolicy | None = None) -> Storage:
    """The storage at a location: a path, or a URL of one of :data:`SCHEMES`. Nothing is read yet.

    Args:
        location: a ``Path`` is always a directory; a string may be a URL.
        policy: time-outs and tries of a remote storage; None takes the defaults.

    Raises:
        DataError: another scheme, a URL with a password or query in it, or boto3 is needed and not installed.
    """
    if isinstance(location, Path):
        return LocalStorage(location)
    if _SCHEME.match(location) is None:
        return LocalStorage(Path(location))
    parts = check_url(location)
    if parts.scheme == "file":
        return LocalStorage(Path(unquote(parts.path)))
    from data_pipeline.remote import HttpTransport, RemoteStorage, RetryPolicy

    policy = policy or RetryPolicy()
    if parts.scheme == "s3":
        from data_pipeline.s3 import S3Transport

        return RemoteStorage(location, S3Transport(location, policy), policy)
    return RemoteStorage(location, HttpTransport(location, policy), policy)


def check_url(location: str) -> SplitResult:
    """The parts of a URL of one of :data:`SCHEMES` that holds no secret; `scheme` is in lower case.

    Raises:
        DataError: another scheme, no host or bucket, or a URL with a password, a query or a fragment.
    """
    match = _SCHEME.match(location)
    scheme = match[1].lower() if match is not None else ""
    parts = urlsplit(location)
    if scheme not in SCHEMES or not location.lower().startswith(f"{scheme}://"):
        raise DataError(
            f"{location!r} is not a place to read data from: give a path, or a URL that begins with "
            f"{', '.join(f'{known}://' for known in SCHEMES)} (a path with a colon as ./{location})."
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise DataError(
            f"{scheme}://{parts.hostname or ''}{parts.path} was given with a password, a query or a fragment: "
            "locations are written to logs and checkpoints, so credentials come from the environment only."
        )
    if scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise DataError(f"{location!r} names the host {parts.netloc!r}: file:// is for this machine only.")
        return parts
    if not parts.netloc:
        raise DataError(
            f"{location!r} names no {'bucket' if scheme == 's3' else 'host'}: write {scheme}://NAME/FOLDER."
        )
    return parts


def check_name(name: str) -> str:
    """The name, if every part of it is a plain file name. Raises DataError for ``..``, absolute and odd names."""
    if not all(_PART.fullmatch(part) for part in name.split("/")):
        raise DataError(f"{name!r} is not the name of a dataset's file: letters, digits, '.', '_' and '-' only.")
    return name
