"""WARC and WET files (Common Crawl): the text of ``conversion`` records, read with warcio.

Raw pages (``response`` records) are refused: turning HTML into text well is a task of its own, and badly done it
spoils a corpus in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from data_pipeline.documents import Document
from data_pipeline.errors import DataError
from data_pipeline.sources.config import SourceConfig
from data_pipeline.sources.streams import ChunkReader, File, decompressed, explained


def read(source: SourceConfig, file: File) -> Iterator[Document]:
    """One document a ``conversion`` record, and a ``resource`` record of plain text; the id is the record's id.

    Bytes that are no UTF-8 become U+FFFD. Records about the crawl (``warcinfo``, ``metadata``, ``request``) are passed
    over.

    Raises:
        DataError: the file is damaged or cut short within a record, holds raw pages, or a record is too long.
    """
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    ending = _Ending()
    path = file.name
    with explained(path), file.path.open("rb") as opened:
        stream = ChunkReader(decompressed(cast(Any, opened), path, source), ending)
        number = 0
        try:
            for record in ArchiveIterator(stream, no_record_parse=True):
                number += 1
                data = _text_of(record, f"{path}, record {number}", source)
                if data is not None:
                    identity = record.rec_headers.get_header("WARC-Record-ID") or f"{path}@{number}"
                    yield Document(identity, source.spec, data.decode("utf-8", "replace"))
        except (ArchiveLoadFailed, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{path} is damaged after record {number} ({reason}): restore or download it again."
            ) from error
        if stream.error is not None:  # the library takes a failing read for the end
            raise stream.error
        if number == 0 or not ending.complete:
            raise DataError(f"{path} is cut short after record {number}: restore or download it again.")


class _Ending:
    """Remembers how a stream ends: each record is followed by two line ends."""

    def __init__(self) -> None:
        self._tail = b""

    def __call__(self, data: bytes) -> None:
        self._tail = (self._tail + data[-4:])[-4:]

    @property
    def complete(self) -> bool:
        return self._tail == b"\r\n\r\n"


def _text_of(record: Any, place: str, source: SourceConfig) -> bytes | None:
    """The whole body of a record of text, or None for a record of another type, whose body is passed over."""
    length = record.rec_headers.get_header("Content-Length") or ""
    if not length.isdecimal():
        raise DataError(f"{place} has no complete header: the file is cut short; restore or download it again.")
    if record.rec_type == "response":
        raise DataError(
            f"{place} is a raw page, and only extracted text is read: use the crawl's WET files, or extract the text "
            "first."
        )
    kind = record.rec_headers.get_header("Content-Type") or ""
    if record.rec_type != "conversion" and not (record.rec_type == "resource" and kind.startswith("text/plain")):
        return None
    if int(length) > source.max_document_bytes:
        raise DataError(
            f"{place} has {length} bytes, and max_document_bytes is {source.max_document_bytes}: check the file, or "
            "raise it."
        )
    data = b"".join(iter(record.raw_stream.read, b""))
    if len(data) != int(length):
        raise DataError(
            f"{place} has {len(data)} of its {length} bytes: the file is cut short; restore or download it again."
        )
    return data
