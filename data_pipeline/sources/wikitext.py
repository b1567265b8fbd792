"""WikiText raw files (``wiki.train.raw``): articles begin at level-1 headings `` = Title = `` between blank lines.

Sub-headings (`` = = History = = ``) stay in the text, as does the title: that is the set-up in which perplexities on
WikiText-103 are published.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.documents import Document
from data_pipeline.errors import DataError
from data_pipeline.sources.config import SourceConfig
from data_pipeline.sources.streams import COMPRESSIONS, File, decode_text, file_chunks, lines, ranges, seek_line

_HEADING = re.compile(rb" ?= (?!=)(?:.*\S)?(?<!=) = ?\r?")


def read(source: SourceConfig, file: File, start: int = 0, stop: int | None = None) -> Iterator[Document]:
    """One document an article, with the id ``path#OFFSET`` (bytes of the uncompressed file).

    Text before the first heading, if there is any, is a document too. Raises DataError for an article above
    ``max_document_bytes``.
    """
    article: list[bytes] = []
    begin, size = start, 0
    for offset, line, heading in _marked(
        lines(file_chunks(file, source, start, stop), file.name, source.max_document_bytes)
    ):
        if heading and article:
            yield from _document(source, file.name, begin, article)
            article, begin, size = [], start + offset, 0
        article.append(line)
        size += len(line) + 1
        if size > source.max_document_bytes:
            raise DataError(
                f"{file.name}#{begin} is an article of more than {source.max_document_bytes} bytes: check that the "
                "file is WikiText raw, or raise max_document_bytes."
            )
    yield from _document(source, file.name, begin, article)


def plan(source: SourceConfig, path: str, target_bytes: int) -> list[tuple[int, int]] | None:
    """Byte ranges of about `target_bytes` that begin at articles; None if the file can only be read whole."""
    size = Path(path).stat().st_size
    if path.lower().endswith(COMPRESSIONS) or size <= target_bytes:
        return None
    starts = (_seek_article(source, path, at, size) for at in range(target_bytes, size, target_bytes))
    return ranges(starts, size)


def _document(source: SourceConfig, name: str, begin: int, article: list[bytes]) -> Iterator[Document]:
    text = decode_text(b"\n".join(article), name, begin)
    if text.strip():
        yield Document(f"{name}#{begin}", source.spec, text + "\n")


def _marked(found: Iterator[bytes], after_blank: bool = True) -> Iterator[tuple[int, bytes, bool]]:
    """(offset, line, whether it is a title): formulas look like titles, but do not stand between blank lines."""
    offset, line = 0, next(found, None)
    while line is not None:
        following = next(found, None)
        title = after_blank and not (following or b"").strip() and _HEADING.fullmatch(line) is not None
        yield offset, line, title
        offset += len(line) + 1
        after_blank = not line.strip()
        line = following


def _seek_article(source: SourceConfig, path: str, position: int, size: int) -> int:
    """Where the first title begins whose line and the one before begin at or after `position`."""
    start = seek_line(path, position, size)
    found = lines(file_chunks(File.local(path), source, start, size), path, source.max_document_bytes)
    return next((start + offset for offset, _, title in _marked(found, after_blank=False) if title), size)
