"""Where documents come from: local text and JSON Lines files, plain or compressed, and named sources.

A source is a string: a path, a glob, or a name in :data:`NAMED_SOURCES`. Reading is a stream: at most one document
(or one piece of a large text file) is in memory. The order of a source's documents is fixed: files sorted by path,
then the order within a file.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from data_pipeline import installed_docs
from data_pipeline.documents import Document
from data_pipeline.errors import DataError

__all__ = ["NAMED_SOURCES", "Document", "NamedSource", "describe_source", "read_documents"]

_CHUNK = 1 << 20
#: A text file up to this many characters is one document.
WHOLE_FILE = 256 * 1024
#: Pieces of a larger text file: cut at the first blank line after this many characters.
PIECE = 16 * 1024
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_TEXT_SUFFIXES = (".txt", ".md")
_COMPRESSIONS = (".gz", ".zst")


@dataclass(frozen=True)
class NamedSource:
    """A source that is no file: how to read it, and facts that change whenever its text may have changed."""

    read: Callable[[], Iterator[Document]]
    describe: Callable[[], list[list[Any]]]


NAMED_SOURCES: dict[str, NamedSource] = {
    installed_docs.NAME: NamedSource(installed_docs.read_installed_docs, installed_docs.describe_installed_docs),
}


def read_documents(spec: str) -> Iterator[Document]:
    """Stream the documents of one source.

    JSON Lines: one document a line, from the field ``text``; its id is the field ``id``, else ``path:line``. Text:
    one document a file; a file of more than 256 Ki characters (a book, a dump) is cut at blank lines into documents
    of about 16 Ki characters, ``path#0``, ``path#1``..., so that one file neither fills a block nor falls wholly
    into one split.

    Raises:
        DataError: nothing matches, the extension is unknown, or a file is damaged (naming file and line). Missing
            files are reported at once, before the first document is asked for.
    """
    named = NAMED_SOURCES.get(spec)
    if named is not None:
        return named.read()
    paths = _expand(spec)
    return (document for path in paths for document in _read_file(spec, path))


def describe_source(spec: str) -> list[list[Any]]:
    """What identifies the present content of a source without reading it: ``[path, bytes, mtime in ns]`` a file.

    Used to tell whether a dataset is up to date. Raises DataError like :func:`read_documents`.
    """
    named = NAMED_SOURCES.get(spec)
    if named is not None:
        return named.describe()
    facts = [(path, path.stat()) for path in _expand(spec)]
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in facts]


def _expand(spec: str) -> list[Path]:
    """The files of a path or glob, sorted; all of them checked for a known extension."""
    if "://" in spec or spec.startswith("pipe:"):
        raise DataError(f"source {spec!r} is a URL, but sources are local files: download it and give its path.")
    path = Path(spec).expanduser()
    if path.is_dir():
        raise DataError(
            f"source {spec!r} is a directory: name its files with a glob such as '{spec.rstrip('/')}/**/*.txt'."
        )
    if path.exists():
        paths = [path]
    else:
        found = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        paths = sorted(p for p in map(Path, found) if p.is_file())
    if not paths:
        names = ", ".join(sorted(NAMED_SOURCES))
        raise DataError(
            f"source {spec!r} matches no file: give an existing path or glob, or one of the names: {names}."
        )
    for path in paths:
        _format(path)
    return paths


def _format(path: Path) -> str:
    """``.txt``, ``.md`` or ``.jsonl``, without the compression's suffix."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in (*_TEXT_SUFFIXES, ".jsonl"):
        raise DataError(
            f"{path} has an unknown extension: sources are .txt, .md or .jsonl files, each also as .gz or .zst; "
            "rename or convert it, or narrow the glob."
        )
    return suffixes[-1]


def _read_file(spec: str, path: Path) -> Iterator[Document]:
    read = _read_jsonl if _format(path) == ".jsonl" else _read_text
    try:
        yield from read(spec, path)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(f"{path} is damaged or cut short ({error}): restore or download it again.") from error
    except (PermissionError, FileNotFoundError) as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): check that it exists and its permissions."
        ) from error


def _chunks(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a file in pieces of about a megabyte."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        with gzip.open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
        return
    with path.open("rb") as file:
        if suffix != ".zst":
            while chunk := file.read(_CHUNK):
                yield chunk
            return
        # Not stream_reader: it takes the end of a truncated file for the end of the data.
        frame = zstandard.ZstdDecompressor().decompressobj()
        started = False
        while data := file.read(_CHUNK // 8):
            while data:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                started = True
                if chunk := frame.decompress(data):
                    yield chunk
                data = frame.unused_data if frame.eof else b""
        if not started or not frame.eof:
            raise EOFError("the last zstd frame is incomplete")


def _lines(path: Path) -> Iterator[bytes]:
    rest: list[bytes] = []
    for chunk in _chunks(path):
        head, *tail = chunk.split(b"\n")
        rest.append(head)
        if tail:
            yield b"".join(rest)
            yield from tail[:-1]
            rest = [tail[-1]]
    if last := b"".join(rest):
        yield last


def _read_jsonl(spec: str, path: Path) -> Iterator[Document]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number} is not valid JSON ({error}): fix or delete that line.") from error
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise DataError(
                f'{path}:{number} is not an object with a string field "text": fix or delete that line, or convert '
                'the file to lines like {"text": "..."}.'
            )
        identity = record.get("id")
        yield Document(f"{path}:{number}" if identity is None else str(identity), spec, text)


def _read_text(spec: str, path: Path) -> Iterator[Document]:
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    pieces = (decode(chunk) for chunk in _chunks(path))
    buffer = ""
    for piece in pieces:
        buffer += piece
        if len(buffer) > WHOLE_FILE:
            break
    else:
        yield Document(str(path), spec, buffer + decode(b"", final=True))
        return
    for number, piece in enumerate(_cut(buffer, pieces, decode)):
        yield Document(f"{path}#{number}", spec, piece)


def _cut(buffer: str, more: Iterator[str], decode: Callable[..., str]) -> Iterator[str]:
    """Cut a stream of text at blank lines; where none comes for 256 Ki characters, at a space or anywhere."""
    position, exhausted = 0, False
    while True:
        match = _BLANK_LINE.search(buffer, position + PIECE)
        if match is not None:
            end = match.end()
        elif len(buffer) - position > WHOLE_FILE:
            space = buffer.rfind(" ", position + PIECE, position + WHOLE_FILE)
            end = space if space > 0 else position + WHOLE_FILE
        elif not exhausted:
            fresh = next(more, None)
            exhausted = fresh is None
            buffer = buffer[position:] + (decode(b"", final=True) if fresh is None else fresh)
            position = 0
            continue
        else:
            break
        yield buffer[position:end]
        position = end
    if buffer[position:].strip():
        yield buffer[position:]
