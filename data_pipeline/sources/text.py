"""Plain text and Markdown: one document a file, and large files cut at blank lines.

Where a large file is cut is decided by its bytes around fixed places (every 16 KiB), not by the cuts before: so any
part of it can be read alone and gives the same documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.documents import Document
from data_pipeline.sources.config import SourceConfig
from data_pipeline.sources.streams import BLANK_LINE, COMPRESSIONS, File, decode_text, file_chunks, ranges

#: A text file up to this many bytes is one document.
WHOLE_FILE = 256 * 1024
#: A larger one is cut at the first blank line after each multiple of this many bytes.
PIECE = 16 * 1024


def read(source: SourceConfig, file: File, start: int = 0, stop: int | None = None) -> Iterator[Document]:
    """The documents of a text file, or of a byte range that :func:`plan` gave.

    Ids are the path, and ``path#OFFSET`` (bytes of uncompressed text) for the pieces of a file above
    :data:`WHOLE_FILE`. What is no UTF-8 becomes U+FFFD.
    """
    whole = start == 0 and (stop is None or stop == file.path.stat().st_size)
    chunks = file_chunks(file, source, start, stop)
    if whole:
        head = b""
        for chunk in chunks:
            head += chunk
            if len(head) > WHOLE_FILE:
                break
        else:
            yield Document(file.name, source.spec, decode_text(head, file.name))
            return
        chunks = _chain(head, chunks)
    for offset, piece in _pieces(chunks, start):
        text = decode_text(piece, file.name, offset)
        if text.strip():
            yield Document(f"{file.name}#{offset}", source.spec, text)


def plan(source: SourceConfig, path: str, target_bytes: int) -> list[tuple[int, int]] | None:
    """Byte ranges of about `target_bytes` that begin at cuts; None if the file can only be read whole."""
    size = Path(path).stat().st_size
    if path.lower().endswith(COMPRESSIONS) or size <= max(WHOLE_FILE, target_bytes):
        return None
    return ranges(_starts(path, max(target_bytes // PIECE, 1) * PIECE, size), size)


def _starts(path: str, step: int, size: int) -> Iterator[int]:
    with Path(path).open("rb") as file:
        for wanted in range(step, size, step):
            for mark in range(wanted, min(wanted + step, size), PIECE):
                file.seek(mark)
                end = _cut(file.read(PIECE), mark)
                if end is not None:
                    yield end
                    break


def _chain(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from rest


def _cut(window: bytes, mark: int) -> int | None:
    """Where the file is cut, if at all, in the window of :data:`PIECE` bytes that begins at `mark`."""
    match = BLANK_LINE.search(window)
    if match is not None:
        return mark + match.end()
    if mark % WHOLE_FILE:
        return None
    # No blank line for long: at a space, or anywhere between two characters.
    space = window.find(b" ")
    if space >= 0:
        return mark + space + 1
    inside = next(
        (i for i, byte in enumerate(window[:4]) if byte & 0xC0 != 0x80), len(window) if len(window) < 4 else 0
    )
    return mark + inside


def _pieces(chunks: Iterator[bytes], start: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of the pieces of a stream that begins at byte `start` of the file, at a cut."""
    buffer, base, begin = b"", start, start  # buffer[0] is byte `base`; the piece began at `begin`
    mark = -(-start // PIECE) * PIECE or PIECE
    ended = False
    while True:
        while not ended and base + len(buffer) < mark + PIECE:
            fresh = next(chunks, b"")
            ended = not fresh
            buffer += fresh
        if mark >= base + len(buffer):
            break
        end = _cut(buffer[mark - base : mark - base + PIECE], mark)
        if end is not None and end > begin:
            yield begin, buffer[begin - base : end - base]
            begin = end
        mark += PIECE
        if begin - base > 1 << 20:
            buffer, base = buffer[begin - base :], begin
    if buffer[begin - base :]:
        yield begin, buffer[begin - base :]
