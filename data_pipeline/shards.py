"""Writes the shards and tables of one split: plain WebDataset tar files, byte for byte reproducible.

:class:`SplitWriter` packs whole documents into blocks, blocks into tar members and members into shards, and keeps the
tables on disk while it goes, so that its memory is one block whatever the size of the corpus.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from webdataset.writer import TarWriter

from data_pipeline.schema import BLOCKS, DOCUMENTS, ShardInfo, SplitInfo, TableInfo

#: Data follows the member's 512-byte header; USTAR needs no second header for our short names.
_HEADER = 512


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


class SplitWriter:
    """Takes the documents of one split in their final order and writes its shards and tables into `directory`.

    A block is closed by the document that brings it to `block_tokens`, a shard by the block that brings it to
    `shard_bytes`; documents are never cut, so both may exceed their target by one document or block.
    """

    def __init__(
        self, directory: Path, name: str, *, dtype: str, bos_id: int, block_tokens: int, shard_bytes: int
    ) -> None:
        self.directory, self.name = directory, name
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._bos_id, self._block_tokens, self._shard_bytes = bos_id, block_tokens, shard_bytes
        self._blocks = TableWriter(directory / "index" / f"{name}.blocks.npy", BLOCKS)
        self._documents = TableWriter(directory / "index" / f"{name}.documents.npy", DOCUMENTS)
        self.tokens = self.bytes = self.words = 0
        self._shards: list[ShardInfo] = []
        self._shard: tuple[HashingFile, TarWriter] | None = None
        self._shard_blocks = self._shard_tokens = 0
        self._block: list[int] = []
        self._rows: list[tuple[int, int, np.ndarray]] = []

    @property
    def documents(self) -> int:
        """Documents added so far."""
        return self._documents.rows + len(self._rows)

    def add(self, hash_: bytes, ids: Sequence[int], text_bytes: int, words: int) -> None:
        """Append one document: its hash, its ids without the separator, and the bytes and words of its text."""
        self._rows.append((len(self._block), len(ids) + 1, np.frombuffer(hash_, dtype=np.uint8)))
        self._block.append(self._bos_id)
        self._block.extend(ids)
        self.bytes += text_bytes
        self.words += words
        if len(self._block) >= self._block_tokens:
            self._write_block()

    def close(self) -> SplitInfo:
        """Write what is left and the tables. The split must have got at least one document."""
        if self._block:
            self._write_block()
        if self._shard is not None:
            self._close_shard()
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
            file, tar = self._shard
            # Left open, the tar stream would try to write its rest when it is collected, and print a traceback then.
            for opened in (tar, file):
                with suppress(OSError):
                    opened.close()

    def _write_block(self) -> None:
        data = np.array(self._block, dtype=self._dtype).tobytes()
        if self._shard is None:
            file = HashingFile(self.directory / self._shard_name())
            # Fixed time and owner: the same documents must give the same bytes.
            self._shard = file, TarWriter(file, user="", group="", mtime=0, encoder=False, compress=False)
        file, tar = self._shard
        offset = tar.tarstream.offset + _HEADER
        tar.write({"__key__": f"{self._blocks.rows:09d}", "bin": data})
        row = (len(self._shards), offset, len(data), zlib.crc32(data), len(self._block), self._documents.rows)
        self._blocks.append([row])
        self._documents.append(self._rows)
        self.tokens += len(self._block)
        self._shard_tokens += len(self._block)
        self._shard_blocks += 1
        self._block, self._rows = [], []
        if tar.tarstream.offset >= self._shard_bytes:
            self._close_shard()

    def _shard_name(self) -> str:
        return f"{self.name}-{len(self._shards):06d}.tar"

    def _close_shard(self) -> None:
        assert self._shard is not None
        file, tar = self._shard
        tar.close()
        file.close()
        self._shards.append(
            ShardInfo(
                name=self._shard_name(),
                bytes=file.size,
                sha256=file.hexdigest(),
                blocks=self._shard_blocks,
                tokens=self._shard_tokens,
            )
        )
        self._shard, self._shard_blocks, self._shard_tokens = None, 0, 0
