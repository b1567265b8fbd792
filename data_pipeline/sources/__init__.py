"""Where documents come from: files of many formats, local or remote, Hugging Face data sets and named sources.

A source is a spec string or a :class:`SourceConfig`. Reading is a stream: at most one document (or one piece of a large
text file) is in memory. The order of a source's documents is fixed: files sorted by path, then the order within a
file. :func:`plan_parts` divides a source for parallel work; the parts, read in their order, give exactly what
:func:`read_documents` gives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline import installed_docs
from data_pipeline.documents import Document
from data_pipeline.errors import DataError, Interrupted
from data_pipeline.sources import (
    files,
    huggingface,
    jsonl,
    openwebtext,
    parquet,
    remote_files,
    tars,
    text,
    warc,
    wikitext,
)
from data_pipeline.sources.config import FormatName, Part, SourceConfig
from data_pipeline.sources.remote_files import RemoteFile
from data_pipeline.sources.streams import File, explained

__all__ = [
    "NAMED_SOURCES",
    "Document",
    "NamedSource",
    "Part",
    "SourceConfig",
    "describe_source",
    "plan_parts",
    "read_all",
    "read_documents",
    "read_part",
]


@dataclass(frozen=True)
class NamedSource:
    """A source that is no file: how to read it, and facts that change whenever its text may have changed."""

    read: Callable[[], Iterator[Document]]
    describe: Callable[[], list[list[Any]]]


NAMED_SOURCES: dict[str, NamedSource] = {
    installed_docs.NAME: NamedSource(installed_docs.read_installed_docs, installed_docs.describe_installed_docs),
}

_WHOLE_READERS = {"tar": tars.read, "warc": warc.read, "openwebtext": openwebtext.read}
_RANGE_READERS = {"text": text.read, "jsonl": jsonl.read, "wikitext": wikitext.read, "parquet": parquet.read}
_BYTE_PLANS = {"text": text.plan, "jsonl": jsonl.plan, "wikitext": wikitext.plan}


def read_documents(source: str | SourceConfig, scratch: Path | None = None) -> Iterator[Document]:
    """What :func:`read_all` gives, without the documents that a reader has rejected. Raises DataError as that does."""
    return (document for document in read_all(source, scratch) if document.rejected is None)


def read_all(source: str | SourceConfig, scratch: Path | None = None) -> Iterator[Document]:
    """Stream the documents of one source, less what its weight leaves out, up to its budget.

    Documents that their reader rejects (:class:`Document`) are among them, and cost nothing of the budget.
    Remote files are copied one after the other, each when its first document is asked for, into `scratch` (None: the
    system's directory for temporary files).

    Raises:
        DataError: nothing matches, the format is unknown, or a file is damaged (naming file and line, record or
            member). Missing files are reported at once, before the first document is asked for.
    """
    source = SourceConfig.of(source)
    return _budgeted(source, _weighted(source, _all_documents(source, scratch)))


def describe_source(source: str | SourceConfig) -> list[list[Any]]:
    """What identifies the present content of a source without reading it: ``[path, bytes, mtime in ns]`` a file, and
    ``[URL, bytes, ETag or Last-Modified]`` a remote one.

    Where WARC files may hold pages, the library that extracts their text counts too. Used to tell whether a dataset is
    up to date. Raises DataError like :func:`read_documents`.
    """
    source = SourceConfig.of(source)
    if source.spec in NAMED_SOURCES:
        return NAMED_SOURCES[source.spec].describe()
    if source.spec.startswith(huggingface.PREFIX):
        return huggingface.describe(source)
    if remote_files.is_remote(source.spec):
        remote = remote_files.expand(source)
        described = warc.describe([(file.url, file.kind) for file in remote])
        return [*([file.url, file.size, file.version] for file in remote), *described]
    found = files.expand(source)
    facts = [(path, Path(path).stat()) for path, _ in found]
    return [*([path, stat.st_size, stat.st_mtime_ns] for path, stat in facts), *warc.describe(found)]


def plan_parts(source: str | SourceConfig, target_bytes: int) -> list[Part]:
    """Divide a source into parts of about `target_bytes` on disk, which can be read apart from each other.

    Plain text, JSON Lines and WikiText are cut between documents, Parquet between row groups, Hugging Face data sets
    between shards; other files, and all remote ones, are one part each. A source with a budget is one part, because
    where it ends depends on all that comes before. The plan depends on the files and `target_bytes` only.

    Raises:
        DataError: as :func:`read_documents`, or `target_bytes` is below 1.
    """
    if target_bytes < 1:
        raise DataError(f"parts cannot have {target_bytes} bytes: choose at least 1.")
    source = SourceConfig.of(source)
    if source.spec in NAMED_SOURCES:
        return [Part(source=source, unit="source")]
    if source.spec.startswith(huggingface.PREFIX):
        if source.budgeted:
            return [Part(source=source, unit="source")]
        return [Part(source=source, unit="shards", start=i, stop=i + 1) for i in range(huggingface.shards(source))]
    if remote_files.is_remote(source.spec):
        return _plan_remote(source)
    found = files.expand(source)
    if source.budgeted:
        return [Part(source=source, unit="source", bytes=sum(Path(path).stat().st_size for path, _ in found))]
    return [part for path, kind in found for part in _plan_file(source, path, kind, target_bytes)]


def read_part(part: Part, scratch: Path | None = None) -> Iterator[Document]:
    """The documents of one part, read as :func:`read_all` does.

    Raises DataError as that does, also if a file has shrunk or a remote one was replaced since.
    """
    source = part.source
    if part.unit == "source":
        return _budgeted(source, _weighted(source, _all_documents(source, scratch, part.version)))
    if part.unit == "shards":
        return _weighted(source, huggingface.read(source, part.start, part.stop))
    kind = source.format or files.format_of(part.path)
    if remote_files.is_remote(part.path):
        return _weighted(source, _read_remote(source, RemoteFile(part.path, kind, part.bytes, part.version), scratch))
    stop = None if part.unit == "file" else part.stop
    return _weighted(source, _read_file(source, File.local(part.path), kind, part.start, stop))


def _plan_remote(source: SourceConfig) -> list[Part]:
    found = remote_files.expand(source)
    if source.budgeted:
        size, version = sum(file.size for file in found), remote_files.versions_of(found)
        return [Part(source=source, unit="source", bytes=size, version=version)]
    return [Part(source=source, unit="file", path=f.url, bytes=f.size, version=f.version) for f in found]


def _plan_file(source: SourceConfig, path: str, kind: FormatName, target_bytes: int) -> Iterator[Part]:
    if kind == "parquet":
        for start, stop in parquet.plan(source, path, target_bytes):
            size = parquet.size_of(path, start, stop)
            yield Part(source=source, unit="row_groups", path=path, start=start, stop=stop, bytes=size)
        return
    with explained(path):
        cuts = _BYTE_PLANS[kind](source, path, target_bytes) if kind in _BYTE_PLANS else None
        size = Path(path).stat().st_size
    if cuts is None:
        yield Part(source=source, unit="file", path=path, bytes=size)
        return
    for start, stop in cuts:
        yield Part(source=source, unit="bytes", path=path, start=start, stop=stop, bytes=stop - start)


def _all_documents(source: SourceConfig, scratch: Path | None, version: str = "") -> Iterator[Document]:
    if source.spec in NAMED_SOURCES:
        return NAMED_SOURCES[source.spec].read()
    if source.spec.startswith(huggingface.PREFIX):
        return huggingface.read(source)
    if remote_files.is_remote(source.spec):
        remote = remote_files.expand(source)
        if version and version != remote_files.versions_of(remote):
            raise Interrupted(
                f"files of source {source.spec!r} have changed since the build looked at it: start again."
            )
        return (document for file in remote for document in _read_remote(source, file, scratch))
    found = files.expand(source)
    return (document for path, kind in found for document in _read_file(source, File.local(path), kind))


def _read_remote(source: SourceConfig, remote: RemoteFile, scratch: Path | None) -> Iterator[Document]:
    with remote_files.local_copy(remote, scratch) as path:
        yield from _read_file(source, File(remote.url, path), remote.kind)


def _read_file(
    source: SourceConfig, file: File, kind: FormatName, start: int = 0, stop: int | None = None
) -> Iterator[Document]:
    with explained(file.name):
        if kind in _WHOLE_READERS:
            yield from _WHOLE_READERS[kind](source, file)
        else:
            yield from _RANGE_READERS[kind](source, file, start, stop)


def _weighted(source: SourceConfig, documents: Iterator[Document]) -> Iterator[Document]:
    if source.weight == 1.0:
        return documents
    limit = int(source.weight * 2**64)
    return (document for document in documents if _draw(document.text or document.id) < limit)


def _draw(content: str) -> int:
    # A key of its own: the draw must not be tied to the hash that deals documents to splits.
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8, key=b"weight").digest()
    return int.from_bytes(digest, "little")


def _budgeted(source: SourceConfig, documents: Iterator[Document]) -> Iterator[Document]:
    if not source.budgeted:
        return documents
    return _first(documents, source.max_documents, source.max_bytes)


def _first(documents: Iterator[Document], count: int | None, size: int | None) -> Iterator[Document]:
    used = taken = 0
    for document in documents:
        if document.rejected is not None:
            yield document
            continue
        taken += 1
        used += len(document.text.encode("utf-8", "surrogatepass"))
        if size is not None and used > size:
            return
        yield document
        if taken == count or used == size:  # without asking for the next one, which may lie in another remote file
            return
