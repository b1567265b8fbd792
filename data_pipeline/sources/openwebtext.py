"""The original OpenWebText layout: ``openwebtext.tar.xz`` holds ``urlsf_subset*.xz``, and each is a tar of ``.txt``.

The subsets can also be given on their own (``urlsf_subset*.xz``), as they lie after unpacking the outer archive; they
are then parts that can be read in parallel, which one ``.tar.xz`` cannot.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from data_pipeline.documents import Document
from data_pipeline.errors import DataError
from data_pipeline.sources.config import SourceConfig
from data_pipeline.sources.streams import ChunkReader, File, decompressed, explained
from data_pipeline.sources.tars import TarWatch


def read(source: SourceConfig, file: File) -> Iterator[Document]:
    """One document a ``.txt`` member of a subset, with the id ``SUBSET/MEMBER``, such as
    ``urlsf_subset00-1_data/0000001-....txt``.

    Raises:
        DataError: an archive is damaged at either level, unsafe, or holds no text; it names archive and member.
    """
    found = False
    with explained(file.name), file.path.open("rb") as opened:
        for document in _archive(cast(BinaryIO, opened), file.name, file.name, source):
            found = True
            yield document
    if not found:
        raise DataError(f"{file.name} holds no .txt file, neither directly nor in .xz subsets: it is not OpenWebText.")


def _archive(file: BinaryIO, name: str, shown: str, source: SourceConfig, level: int = 0) -> Iterator[Document]:
    """The documents of one tar stream, and of the ``.xz`` tars in it (one level deep)."""
    chunks = decompressed(file, name, source)
    # Members can be whole subsets, which are streamed: only a document's size has a limit, and not here.
    stream = ChunkReader(chunks, TarWatch(shown, 1 << 50))
    with _opened(stream, shown) as tar:
        for info in tar:
            member = tar.extractfile(info) if info.isreg() else None
            if member is not None and info.name.endswith(".xz") and level == 0:
                inner = f"{shown} » {info.name}"
                with explained(inner):
                    yield from _archive(cast(BinaryIO, member), info.name, inner, source, level + 1)
            elif member is not None and info.name.endswith(".txt"):
                if info.size > source.max_document_bytes:
                    raise DataError(
                        f"{shown} » {info.name} has {info.size} bytes, and max_document_bytes is "
                        f"{source.max_document_bytes}: check the archive, or raise it."
                    )
                yield _document(member.read(), info, name, shown, source)
            tar.members = []  # type: ignore[attr-defined]  # or the list grows with the archive
    while stream.read(1 << 20):  # the end of the archive is checked too
        pass


def _opened(stream: ChunkReader, shown: str) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=stream, mode="r|")
    except tarfile.TarError as error:
        raise DataError(f"{shown} is no tar archive ({error}): restore or download it again.") from error


def _document(data: bytes, info: tarfile.TarInfo, name: str, shown: str, source: SourceConfig) -> Document:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown} » {info.name} is not UTF-8 ({error.reason}): download the archive again.") from error
    subset = PurePosixPath(name).name.removesuffix(".xz")
    return Document(f"{subset}/{info.name}", source.spec, text)
