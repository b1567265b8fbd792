"""Bytes out of plain and compressed files: bounded in memory and expansion, and strict about where they end."""

from __future__ import annotations

import gzip
import io
import itertools
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

import zstandard

from data_pipeline.errors import DataError
from data_pipeline.sources.config import SourceConfig

COMPRESSIONS = (".gz", ".zst", ".xz")
CHUNK = 1 << 20
#: 4 bytes of zstd can stand for 128 KiB, and its decompressor has no output limit: 2 KiB at a time bound it to 64 MiB.
_ZSTD_INPUT = 2048
#: Small files may expand by any factor.
_FREE = 64 * 1024 * 1024
_XZ_MEMORY = 1 << 30


@dataclass(frozen=True)
class File:
    """A file of a source: `name` is what ids and messages call it (a path or a URL), and `path` where its bytes lie."""

    name: str
    path: Path

    @classmethod
    def local(cls, path: str) -> File:
        """A file that lies where its name says."""
        return cls(path, Path(path))


def telling(name: str) -> str:
    """The name that tells format and compression: of an HTTP URL, what its escapes stand for."""
    return unquote(name) if name.lower().startswith(("http://", "https://")) else name


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what damaged, unreadable and missing files raise into a DataError that names the file."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, lzma.LZMAError) as error:
        raise DataError(f"{name} is damaged or cut short ({error}): restore or download it again.") from error
    except (PermissionError, FileNotFoundError) as error:
        raise DataError(
            f"{name} cannot be read ({error.strerror}): check that it exists and its permissions."
        ) from error


class _Counted(io.RawIOBase):
    """Reads from another stream and counts."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file, self.count = file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)


def decompressed(file: BinaryIO, name: str, source: SourceConfig) -> Iterator[bytes]:
    """The content of an open file in pieces, decompressed as the suffix of `name` says.

    Raises:
        DataError: it expands beyond ``source.max_ratio``.
        EOFError, zlib.error, ZstdError, LZMAError: it is damaged or ends too early; see :func:`explained`.
    """
    suffix = Path(telling(name)).suffix.lower()
    counted = _Counted(file)
    expand = {".gz": _gzip, ".tgz": _gzip, ".zst": _zstd, ".xz": _xz, ".txz": _xz}.get(suffix)
    if expand is None:
        while chunk := file.read(CHUNK):
            yield chunk
        return
    produced = 0
    for chunk in expand(counted):
        produced += len(chunk)
        if produced > _FREE and produced > source.max_ratio * counted.count:
            raise DataError(
                f"{name} expands to more than {source.max_ratio:g} times its size, as a decompression bomb does: "
                "leave it out, or raise max_ratio if you trust it."
            )
        yield chunk


def _gzip(file: _Counted) -> Iterator[bytes]:
    # A small buffer, so that the ratio is judged on what was used and not on what was read ahead.
    unpacked = gzip.GzipFile(fileobj=io.BufferedReader(file, 1 << 16), mode="rb")
    while chunk := unpacked.read(CHUNK):
        yield chunk
    if file.count == 0:
        raise EOFError("the file is empty")


def _zstd(file: _Counted) -> Iterator[bytes]:
    # Not stream_reader: it takes the end of a truncated file for the end of the data.
    frame, started = zstandard.ZstdDecompressor().decompressobj(), False
    while data := file.read(_ZSTD_INPUT):
        while data:
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
            started = True
            if chunk := frame.decompress(data):
                yield chunk
            data = frame.unused_data if frame.eof else b""
    if not started or not frame.eof:
        raise EOFError("the last zstd frame is incomplete")


def _xz(file: _Counted) -> Iterator[bytes]:
    stream, data = lzma.LZMADecompressor(memlimit=_XZ_MEMORY), b""
    while True:
        if stream.eof:
            data = stream.unused_data.lstrip(b"\0") or file.read(1 << 16).lstrip(b"\0")
            if not data:
                return
            stream = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
        elif stream.needs_input and not data:
            data = file.read(1 << 16)
            if not data:
                raise EOFError("the last xz stream is incomplete")
        chunk = stream.decompress(data, max_length=CHUNK)
        data = b""
        if chunk:
            yield chunk


def file_chunks(file: File, source: SourceConfig, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The decompressed bytes of a file; of a plain file only those from `start` to `stop`."""
    with file.path.open("rb") as opened:
        if stop is None:
            yield from decompressed(opened, file.name, source)
            return
        opened.seek(start)
        while start < stop and (chunk := opened.read(min(CHUNK, stop - start))):
            start += len(chunk)
            yield chunk
        if start < stop:
            raise EOFError(f"{stop - start} bytes fewer than when the work was planned")


def lines(chunks: Iterator[bytes], name: str, limit: int) -> Iterator[bytes]:
    """The lines of a stream, without their ends. Raises DataError where one is longer than `limit` bytes."""
    rest: list[bytes] = []
    waiting = number = 0
    for chunk in chunks:
        head, *tail = chunk.split(b"\n")
        rest.append(head)
        waiting += len(head)
        if tail:
            yield b"".join(rest)
            yield from tail[:-1]
            number += len(tail)
            rest, waiting = [tail[-1]], len(tail[-1])
        if waiting > limit:
            raise DataError(
                f"{name} has a line of more than {limit} bytes ({number} line(s) after the place where reading began): "
                "check that the file is what its name says, or raise max_document_bytes."
            )
    if last := b"".join(rest):
        yield last


class ChunkReader(io.RawIOBase):
    """A file object over an iterator of bytes, for libraries that want to call ``read``.

    `error` keeps what the iterator raised, because some libraries swallow or rewrite exceptions.
    """

    def __init__(self, chunks: Iterator[bytes], watch: Callable[[bytes], None] | None = None) -> None:
        super().__init__()
        self._chunks, self._watch = chunks, watch
        self._buffer, self._position = b"", 0
        self.error: BaseException | None = None

    def readable(self) -> bool:
        """True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Exactly `size` bytes, fewer only at the end; `watch` sees them before the caller, and b"" at the end."""
        pieces, missing = [], size if size >= 0 else 1 << 62
        try:
            while missing:
                if self._position == len(self._buffer):
                    fresh = next(self._chunks, b"")
                    if self._watch is not None:
                        self._watch(fresh)
                    if not fresh:
                        break
                    self._buffer, self._position = fresh, 0
                piece = self._buffer[self._position : self._position + missing]
                self._position += len(piece)
                missing -= len(piece)
                pieces.append(piece)
        except BaseException as error:
            self.error = error
            raise
        return b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        """As :meth:`read`, into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def seek_line(path: str, position: int, size: int) -> int:
    """Where the first line that begins at or after `position` begins in a plain file of `size` bytes."""
    if position <= 0:
        return 0
    with Path(path).open("rb") as file:
        file.seek(position - 1)
        at = position - 1
        while chunk := file.read(CHUNK):
            found = chunk.find(b"\n")
            if found >= 0:
                return min(at + found + 1, size)
            at += len(chunk)
    return size


def ranges(starts: Iterator[int], size: int) -> list[tuple[int, int]]:
    """Ascending cut points as ranges that cover ``[0, size)``; those that coincide count once."""
    cuts = sorted({0, size, *starts})
    return list(itertools.pairwise(cuts)) or [(0, 0)]


#: A blank line, also in files from Windows.
BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")


def decode_text(data: bytes, path: str, offset: int = 0) -> str:
    """Bytes that stand at `offset` of a file as text. Raises DataError that names the first byte which is no UTF-8.

    Replacement characters instead would change the corpus without a word.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 at byte {offset + error.start}: convert it (iconv -t UTF-8) or leave it out."
        ) from None
