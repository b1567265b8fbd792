"""JSON Lines: one document a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.documents import Document
from data_pipeline.errors import DataError
from data_pipeline.sources.config import SourceConfig
from data_pipeline.sources.streams import COMPRESSIONS, File, file_chunks, lines, ranges, seek_line


def read(source: SourceConfig, file: File, start: int = 0, stop: int | None = None) -> Iterator[Document]:
    """The documents of a file, or of a byte range that :func:`plan` gave; blank lines are passed over.

    Without an id field the id is ``path@OFFSET``, the byte of the uncompressed file at which the line begins.

    Raises:
        DataError: a line is not JSON or has no text; it names file and line.
    """
    offset = start
    for number, line in enumerate(lines(file_chunks(file, source, start, stop), file.name, source.max_document_bytes)):
        if line.strip():
            try:
                text, identity = parse(line, source)
            except ValueError as error:
                place = f"{file.name}:{_lines_before(file.path, start) + number + 1}"
                raise DataError(f"{place} {error}: fix or delete that line.") from error
            yield Document(f"{file.name}@{offset}" if identity is None else identity, source.spec, text)
        offset += len(line) + 1


def parse(data: bytes, source: SourceConfig) -> tuple[str, str | None]:
    """(text, id) of one JSON record. Raises ValueError with the rest of a sentence that begins with its place."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not valid JSON ({error})") from error
    return fields(record, source)


def fields(record: Any, source: SourceConfig) -> tuple[str, str | None]:
    """(text, id) of a record. Raises ValueError as :func:`parse` does."""
    text = record.get(source.text_field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise ValueError(f'is not an object with a string field "{source.text_field}" (the setting text_field)')
    identity = record.get(source.id_field)
    return text, None if identity is None else str(identity)


def plan(source: SourceConfig, path: str, target_bytes: int) -> list[tuple[int, int]] | None:
    """Byte ranges of about `target_bytes` that begin at lines; None if the file can only be read whole."""
    size = Path(path).stat().st_size
    if path.lower().endswith(COMPRESSIONS) or size <= target_bytes:
        return None
    return ranges((seek_line(path, at, size) for at in range(target_bytes, size, target_bytes)), size)


def _lines_before(path: Path, position: int) -> int:
    """Lines that end before a byte of a plain file. Only for messages: it reads all that lies before."""
    count = 0
    with path.open("rb") as file:
        while position > 0 and (chunk := file.read(min(1 << 20, position))):
            count += chunk.count(b"\n")
            position -= len(chunk)
    return count
