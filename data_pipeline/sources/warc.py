"""WARC and WET files (Common Crawl), read with warcio: the text of ``conversion`` records, and of web pages.

One record must not stop a build of a crawl, and none may vanish or change without a word: records without usable text
are given out as rejected, and the cleaning report counts them by rule. The rules are those of
:func:`data_pipeline.sources.pages.page_text`, and ``not_utf8`` for a text whose bytes are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from data_pipeline.documents import Document
from data_pipeline.errors import DataError
from data_pipeline.sources import pages
from data_pipeline.sources.config import FormatName, SourceConfig
from data_pipeline.sources.streams import ChunkReader, File, decompressed, explained, telling


def read(source: SourceConfig, file: File) -> Iterator[Document]:
    """One document a record of text (``conversion``, or ``resource`` of plain text) or page (``response``).

    Its id is the record's id, or the page's address where it is rejected. Records about the crawl (``warcinfo``,
    ``metadata``, ``request``, ``revisit``) are passed over.

    Raises:
        DataError: the file is damaged or cut short within a record, a record of text is too long, or a page is met
            and the library for it is not installed.
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
                document = _document(record, f"{path}, record {number}", f"{path}@{number}", source)
                if document is not None:
                    yield document
        except (ArchiveLoadFailed, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{path} is damaged after record {number} ({reason}): restore or download it again."
            ) from error
        if stream.error is not None:  # the library takes a failing read for the end
            raise stream.error
        if number == 0 or not ending.complete:
            raise DataError(f"{path} is cut short after record {number}: restore or download it again.")


def describe(files: Iterable[tuple[str, FormatName]]) -> list[list[Any]]:
    """What besides the files decides their text: the library's version, if any of them may hold pages."""
    raw = any(kind == "warc" and ".wet" not in telling(name).lower() for name, kind in files)
    return [[pages.LIBRARY, pages.version()]] if raw else []


class _Ending:
    """Remembers how a stream ends: each record is followed by two line ends."""

    def __init__(self) -> None:
        self._tail = b""

    def __call__(self, data: bytes) -> None:
        self._tail = (self._tail + data[-4:])[-4:]

    @property
    def complete(self) -> bool:
        return self._tail == b"\r\n\r\n"


def _document(record: Any, place: str, default: str, source: SourceConfig) -> Document | None:
    """The document of a record, or None for a record of another type, whose body is passed over."""
    length = record.rec_headers.get_header("Content-Length") or ""
    if not length.isdecimal():
        raise DataError(f"{place} has no complete header: the file is cut short; restore or download it again.")
    identity = record.rec_headers.get_header("WARC-Record-ID") or default
    if record.rec_type == "response":
        return _page(record, place, identity, int(length), source)
    kind = record.rec_headers.get_header("Content-Type") or ""
    if record.rec_type != "conversion" and not (record.rec_type == "resource" and kind.startswith("text/plain")):
        return None
    if int(length) > source.max_document_bytes:
        raise DataError(
            f"{place} has {length} bytes, and max_document_bytes is {source.max_document_bytes}: check the file, or "
            "raise it."
        )
    data = _body(record, place, int(length))
    try:
        return Document(identity, source.spec, data.decode("utf-8"))
    except UnicodeDecodeError:
        return Document(identity, source.spec, data.decode("utf-8", "replace"), "not_utf8")


def _page(record: Any, place: str, identity: str, length: int, source: SourceConfig) -> Document:
    address = record.rec_headers.get_header("WARC-Target-URI") or identity
    if length > source.max_document_bytes:
        return Document(address, source.spec, "", "page_too_large")
    pages.check_library(place)
    try:
        truncated = record.rec_headers.get_header("WARC-Truncated") is not None
        text = pages.page_text(_body(record, place, length), source.max_document_bytes, truncated)
    except pages.NoText as reason:
        return Document(address, source.spec, "", reason.rule)
    return Document(identity, source.spec, text)


def _body(record: Any, place: str, length: int) -> bytes:
    data = b"".join(iter(record.raw_stream.read, b""))
    if len(data) != length:
        raise DataError(
            f"{place} has {len(data)} of its {length} bytes: the file is cut short; restore or download it again."
        )
    return data
