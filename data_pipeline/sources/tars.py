"""Tar archives of raw text: WebDataset shards with ``.txt`` or ``.json`` members.

The members are grouped into samples by the ``webdataset`` library, but it gets an open local file and nothing else:
none of its URL handlers (``pipe:`` runs a shell) and none of its decoders (some unpickle) is ever reached. Every byte
passes through :class:`TarWatch` first, because the library, like :mod:`tarfile`, takes a damaged header for the end
of the archive, and loses what follows without a word.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any

from data_pipeline.documents import Document
from data_pipeline.errors import DataError
from data_pipeline.sources.config import SourceConfig
from data_pipeline.sources.jsonl import parse
from data_pipeline.sources.streams import ChunkReader, File, decompressed, explained

_BLOCK = 512
_META = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
#: Longest extended header; real ones have some hundred bytes.
_LARGEST_META = 1 << 20
_TEXT, _JSON = "txt", "json"


class TarWatch:
    """Walks over the bytes of a tar archive as they pass, and objects to what readers are silent about.

    It is called with each piece, and with ``b""`` at the end. It raises DataError for a header with a wrong checksum,
    an archive that ends without its two empty blocks, a member above `limit` bytes, a link or device, and a name that
    leads outside of the directory.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name, self._limit = name, limit
        self._pending = bytearray()
        self._skip = self._offset = self._zeros = 0
        self._meta: bytearray | None = None
        self._meta_missing = 0
        self._meta_type = b""
        self._override: dict[str, str] = {}

    def __call__(self, data: bytes) -> None:
        """Look at the next piece."""
        if not data:
            self._end()
        view, position = memoryview(data), 0
        while position < len(view):
            if self._skip:
                step = min(self._skip, len(view) - position)
                if self._meta is not None and self._meta_missing:
                    taken = min(step, self._meta_missing)
                    self._meta += view[position : position + taken]
                    self._meta_missing -= taken
                self._skip -= step
                if not self._skip and self._meta is not None:
                    self._read_meta()
            else:
                step = min(_BLOCK - len(self._pending), len(view) - position)
                self._pending += view[position : position + step]
                if len(self._pending) == _BLOCK:
                    self._header(bytes(self._pending))
                    self._pending.clear()
            position += step
            self._offset += step

    def _end(self) -> None:
        if self._zeros < 2 or self._skip or self._pending:
            raise DataError(
                f"{self._name} is cut short: after {self._offset} bytes it ends without the two empty blocks that end "
                "a tar archive; restore or download it again."
            )

    def _header(self, block: bytes) -> None:
        if not any(block):
            self._zeros += 1
            return
        if self._zeros:
            # One tar appended to another: readers would stop at the first one's end.
            raise self._bad("something follows the end of the archive, which readers would not see")
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise self._bad(f"a member header is damaged: {error}") from error
        size = info.size
        if size < 0:
            raise self._bad("a member has a negative size")
        if info.type in _META:
            if size > _LARGEST_META:
                raise self._bad("an extended header is larger than 1 MiB")
            self._meta, self._meta_missing, self._meta_type = bytearray(), size, info.type
        else:
            size = self._member(info)
        self._skip = -(-size // _BLOCK) * _BLOCK
        if self._meta is not None and not self._skip:
            self._read_meta()

    def _member(self, info: tarfile.TarInfo) -> int:
        """Check a member that is no extended header; returns the bytes of data that follow."""
        name = self._override.get("path", info.name)
        try:
            size = int(self._override.get("size", info.size))
        except ValueError:
            size = -1
        self._override = {}
        if info.type not in _PLAIN:
            raise self._bad(f"member {name!r} is a link, device or sparse file; only plain files are read")
        if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
            raise self._bad(f"member name {name!r} leads outside of the archive")
        if not 0 <= size <= self._limit:
            raise self._bad(f"member {name!r} has {size} bytes, and max_document_bytes is {self._limit}")
        return 0 if info.type == tarfile.DIRTYPE else size

    def _read_meta(self) -> None:
        """Take path and size from a pax or GNU extended header; they hold for the next member."""
        data, self._meta = bytes(self._meta or b""), None
        if self._meta_type == tarfile.GNUTYPE_LONGNAME:
            self._override["path"] = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
        if self._meta_type != tarfile.XHDTYPE:
            return
        while data.strip(b"\0"):
            length, space, _ = data.partition(b" ")
            if not space or not length.isdigit() or not len(length) < int(length) <= len(data):
                raise self._bad("an extended header is damaged")
            key, equals, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
            if equals and key in (b"path", b"size"):
                self._override[key.decode()] = value.decode("utf-8", "surrogateescape")
            data = data[int(length) :]

    def _bad(self, reason: str) -> DataError:
        return DataError(
            f"{self._name}, at byte {self._offset // _BLOCK * _BLOCK}: {reason}; restore the archive or pack it again."
        )


def samples(file: File, source: SourceConfig) -> Iterator[dict[str, Any]]:
    """The samples of one tar archive (also ``.gz``, ``.xz``, ``.zst``) as the library groups them: raw bytes by suffix.

    Each has ``__key__`` (str) and the members that share it. Raises DataError for everything that
    :class:`TarWatch` finds, before a sample that the damage would have maimed is given out.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    path = file.name
    with explained(path), file.path.open("rb") as opened:
        stream = ChunkReader(decompressed(opened, path, source), TarWatch(path, source.max_document_bytes))
        try:
            yield from group_by_keys(tar_file_expander([{"url": path, "stream": stream}]))
            # The library stops at the first empty block; the end is part of what must be right.
            while stream.read(1 << 20):
                pass
        except Exception as error:
            if stream.error is not None and stream.error is not error:
                raise stream.error from None
            if isinstance(stream.error, DataError | EOFError):
                # The library has written a file object and the URL into the exception's arguments.
                error.args = error.args[:1]
                error.args = (str(error.args[0]).partition(" @ <")[0],)
            if isinstance(error, ValueError | tarfile.TarError) and stream.error is None:
                raise DataError(f"{path} is no WebDataset archive ({error.args[0]}): pack it again.") from error
            raise


def read(source: SourceConfig, file: File) -> Iterator[Document]:
    """One document a sample: its ``.txt`` member, else the text field of its ``.json`` member.

    The id is the id field of the ``.json`` member, else ``path#KEY``. Samples with neither (images, say) are passed
    over, but an archive that has only such samples is refused.

    Raises:
        DataError: the archive is damaged or unsafe, or a member is no UTF-8 or has no text; it names the member.
    """
    seen = used = 0
    for sample in samples(file, source):
        seen += 1
        document = sample_document(sample, file.name, source)
        if document is not None:
            used += 1
            yield document
    if seen and not used:
        raise DataError(f"{file.name} has no .txt or .json member in {seen} sample(s): it is no archive of text.")


def sample_document(sample: dict[str, Any], path: str, source: SourceConfig) -> Document | None:
    """The document of one sample, or None if it has no text; see :func:`read`."""
    key = f"{path}#{sample['__key__']}"
    text, identity = None, None
    if _JSON in sample:
        try:
            text, identity = parse(sample[_JSON], source)
        except ValueError as error:
            if _TEXT not in sample:  # beside a text, JSON is about it and need not hold it
                raise DataError(f"{key}.json {error}: repair or remove the member.") from error
    if _TEXT in sample:
        try:
            text = sample[_TEXT].decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{key}.txt is not UTF-8 ({error.reason}): convert the member.") from error
    return None if text is None else Document(identity or key, source.spec, text)
