"""Writes the shards and tables of one split: plain WebDataset tar files, byte for byte reproducible.

:class:`SplitWriter` packs whole documents into blocks, blocks into tar members and members into shards, and keeps the
tables on disk while it goes, so that its memory is one block whatever the size of the corpus.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_pipeline.checksum import crc32
from data_pipeline.schema import BLOCKS, DOCUMENTS, ShardInfo, SplitInfo, TableInfo

#: Data follows the member's 512-byte header; USTAR needs no second header for our short names.
MEMBER_HEADER = 512


def padded(size: int) -> int:
    """Bytes that `size` bytes of data take in a tar file, without the header."""
    return -(-size // 512) * 512


def shard_name(split: str, number: int) -> str:
    """The file name of a split's shard."""
    return f"{split}-{number:06d}.tar"


class HashingFile(io.RawIOBase):
    """A write-only file that knows the size and SHA-256 of what went through it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("wb")
        self._sha256 = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        """True: tarfile asks."""
        return True

    def write(self, data: Any) -> int:
        """Append all of `data` (never only a part of it)."""
        self._file.write(data)
        self._sha256.update(data)
        self.size += len(data)
        return len(data)

    def close(self) -> None:
        """Flush to the disk and close, once."""
        if not self.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        super().close()

    def hexdigest(self) -> str:
        """SHA-256 of everything written so far."""
        return self._sha256.hexdigest()


class TableWriter:
    """Appends rows to a ``.npy`` file whose length is known only at the end; rows wait in a file beside it."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.dtype, self.rows = path, dtype, 0
        self._spool_path = path.with_suffix(".rows")
        self._spool: IO[bytes] = self._spool_path.open("wb")

    def append(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add rows, each a tuple in the order of the dtype's fields."""
        self._spool.write(np.array(rows, dtype=self.dtype).tobytes())
        self.rows += len(rows)

    def copy(self, table: np.ndarray) -> None:
        """Add the rows of a table of the same dtype, a part at a time."""
        for first in range(0, len(table), 1 << 16):
            self._spool.write(table[first : first + (1 << 16)].tobytes())
        self.rows += len(table)

    def close(self) -> TableInfo:
        """Write the table and say what it is called and hashes to."""
        self._spool.close()
        target = HashingFile(self.path)
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.rows,)}
        np.lib.format.write_array_header_1_0(target, header)
        with self._spool_path.open("rb") as rows:
            shutil.copyfileobj(rows, target, 1 << 20)
        target.close()
        self._spool_path.unlink()
        return TableInfo(name=self.path.name, sha256=target.hexdigest())

    def discard(self) -> None:
        """Give up: close the file, leave no table."""
        self._spool.close()


class ShardWriter:
    """Writes one tar file, block by block; a context manager that leaves `size` and `sha256`."""

    def __init__(self, path: Path) -> None:
        # Here, because the library imports torch: seconds and hundreds of megabytes that no other worker needs.
        from webdataset.writer import TarWriter

        self._file = HashingFile(path)
        # Fixed time and owner: the same documents must give the same bytes.
        self._tar = TarWriter(self._file, user="", group="", mtime=0, encoder=False, compress=False)
        self.size = 0
        self.sha256 = ""

    @property
    def end(self) -> int:
        """Bytes so far, without the end of the tar file."""
        offset: int = self._tar.tarstream.offset
        return offset

    def add(self, block: int, data: bytes) -> int:
        """Append a block by its number in the split; gives the offset of its data in the file."""
        offset = self.end + MEMBER_HEADER
        self._tar.write({"__key__": f"{block:09d}", "bin": data})
        return offset

    def close(self) -> None:
        """Write the end of the tar file, flush it to the disk and take the figures."""
        self._tar.close()
        self._file.close()
        self.size, self.sha256 = self._file.size, self._file.hexdigest()

    def discard(self) -> None:
        """Give up after a failure."""
        # Left open, the tar stream would try to write its rest when it is collected, and print a traceback then.
        for opened in (self._tar, self._file):
            with suppress(OSError):
                opened.close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


@dataclass(frozen=True)
class Stored:
    """What a split holds already: new documents are written after it, into new shards and tables."""

    info: SplitInfo
    blocks: np.ndarray
    documents: np.ndarray


class SplitWriter:
    """Takes the documents of one split in their final order and writes its shards and tables into `directory`.

    A block is closed by the document that brings it to `block_tokens`, a shard by the block that brings it to
    `shard_bytes`; documents are never cut, so both may exceed their target by one document or block.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        dtype: str,
        bos_id: int,
        block_tokens: int,
        shard_bytes: int,
        stored: Stored | None = None,
    ) -> None:
        self.directory, self.name = directory, name
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._bos_id, self._block_tokens, self._shard_bytes = bos_id, block_tokens, shard_bytes
        self._shards: list[ShardInfo] = list(stored.info.shards) if stored else []
        # Tables are written anew under a name of their own, so that readers of the old index are not disturbed.
        table = f"{name}.{len(self._shards):06d}" if stored else name
        self._blocks = TableWriter(directory / "index" / f"{table}.blocks.npy", BLOCKS)
        self._documents = TableWriter(directory / "index" / f"{table}.documents.npy", DOCUMENTS)
        self.tokens = self.bytes = self.words = 0
        if stored:
            self._blocks.copy(stored.blocks)
            self._documents.copy(stored.documents)
            self.tokens, self.bytes, self.words = stored.info.tokens, stored.info.bytes, stored.info.words
        self._shard: ShardWriter | None = None
        self._shard_blocks = self._shard_tokens = 0
        self._parts: list[np.ndarray] = []
        self._block_size = 0
        self._rows: list[tuple[int, int, np.ndarray]] = []

    @property
    def documents(self) -> int:
        """Documents added so far."""
        return self._documents.rows + len(self._rows)

    def add(self, hash_: bytes, ids: np.ndarray, text_bytes: int, words: int) -> None:
        """Append one document: its hash, its ids without the separator, and the bytes and words of its text."""
        self._rows.append((self._block_size, len(ids) + 1, np.frombuffer(hash_, dtype=np.uint8)))
        self._parts.append(np.array([self._bos_id], dtype=self._dtype))
        self._parts.append(ids)
        self._block_size += len(ids) + 1
        self.bytes += text_bytes
        self.words += words
        if self._block_size >= self._block_tokens:
            self._write_block()

    def close(self) -> SplitInfo:
        """Write what is left and the tables. The split must have got at least one document."""
        if self._rows:
            self._write_block()
        if self._shard is not None:
            self._close_shard(self._shard)
        return SplitInfo(
            documents=self._documents.rows,
            tokens=self.tokens,
            bytes=self.bytes,
            words=self.words,
            blocks=self._blocks.rows,
            shards=tuple(self._shards),
            blocks_table=self._blocks.close(),
            documents_table=self._documents.close(),
        )

    def discard(self) -> None:
        """Give up after a failure: close every file and leave the rest to whoever removes the directory."""
        self._blocks.discard()
        self._documents.discard()
        if self._shard is not None:
            self._shard.discard()

    def _write_block(self) -> None:
        data = np.concatenate(self._parts).astype(self._dtype, copy=False).tobytes()
        if self._shard is None:
            self._shard = ShardWriter(self.directory / shard_name(self.name, len(self._shards)))
        offset = self._shard.add(self._blocks.rows, data)
        row = (len(self._shards), offset, len(data), crc32(data), self._block_size, self._documents.rows)
        self._blocks.append([row])
        self._documents.append(self._rows)
        self.tokens += self._block_size
        self._shard_tokens += self._block_size
        self._shard_blocks += 1
        self._parts, self._rows, self._block_size = [], [], 0
        if self._shard.end >= self._shard_bytes:
            self._close_shard(self._shard)

    def _close_shard(self, shard: ShardWriter) -> None:
        shard.close()
        self._shards.append(
            ShardInfo(
                name=shard_name(self.name, len(self._shards)),
                bytes=shard.size,
                sha256=shard.sha256,
                blocks=self._shard_blocks,
                tokens=self._shard_tokens,
            )
        )
        self._shard, self._shard_blocks, self._shard_tokens = None, 0, 0
