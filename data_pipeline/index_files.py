"""The files beside a dataset's shards (tables and tokenizer): brought to this machine, checked, and mapped."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.schema import INDEX_FILE, SplitInfo, TableInfo
from data_pipeline.storage import REMEDY, DamagedData, LocalStorage, Storage

#: Bytes that a remote server may send as index.json or as the tokenizer's model.
LARGEST_FILE = 1 << 30
#: Bytes that are asked for at once.
_PIECE = 1 << 25
#: Rows of a table that are checked at once, so that the copies stay small.
_ROWS = 1 << 18
#: A temporary file that is older (s) belongs to a rank that is gone.
_ABANDONED = 3600.0
#: More than the header of a table's file.
_HEADER = 4096


class IndexFiles:
    """The files of one dataset in a local directory; from a remote storage each is copied there when first needed.

    Ranks that copy at the same time write the same bytes, and each file appears whole and checked.

    Attributes:
        directory: where the files are: the dataset itself, or a cache.
        temporary: owner of the directory if it shall go when nobody needs it any more.
    """

    def __init__(
        self, storage: Storage, directory: Path, temporary: tempfile.TemporaryDirectory[str] | None = None
    ) -> None:
        self.directory, self.temporary = directory, temporary
        self._remote = None if isinstance(storage, LocalStorage) else storage

    def require(self, name: str, sha256: str, limit: int = LARGEST_FILE) -> Path:
        """The path of a file that has that SHA-256, and at most `limit` bytes where it must be copied.

        Raises:
            DataError: it is missing, too large or another file, or the directory cannot be written to.
        """
        file = self.directory / name
        if self._remote is None:
            check_hash(file, sha256)
        else:
            try:
                if not file.exists() or _hash(file) != sha256:
                    self._copy(self._remote, name, sha256, limit)
            except DamagedData as error:
                raise DataError(f"{error}: {REMEDY}.") from error
            except OSError as error:
                raise DataError(
                    f"{file} cannot be read or written ({error.strerror}): choose another data.cache_dir."
                ) from error
        return file

    def table(self, info: TableInfo, dtype: np.dtype[Any], rows: int) -> np.ndarray:
        """Map a table below ``index/``. Raises DataError as :meth:`require`, or if its type or length is wrong."""
        file = self.require(f"index/{info.name}", info.sha256, rows * dtype.itemsize + _HEADER)
        try:
            table: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{file} is not a table ({error}): {REMEDY}.") from error
        if table.dtype != dtype or table.shape != (rows,):
            raise DataError(f"{file} does not fit {INDEX_FILE} ({table.shape[0]} rows, expected {rows}): {REMEDY}.")
        return table

    def _copy(self, storage: Storage, name: str, sha256: str, limit: int) -> None:
        size = storage.size(name)
        if size > limit:
            raise DataError(f"{storage.shown(name)} has {size} bytes, more than the {limit} it may have: {REMEDY}.")
        file = self.directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        for leftover in file.parent.glob(f"{file.name}.*.tmp"):
            with suppress(FileNotFoundError):  # of a rank that was killed while it copied
                if time.time() - leftover.stat().st_mtime > _ABANDONED:
                    leftover.unlink()
        temporary = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        digest = hashlib.sha256()
        try:
            with temporary.open("wb") as handle:
                for start in range(0, size, _PIECE):
                    piece = storage.read_range(name, start, min(_PIECE, size - start), size)
                    digest.update(piece)
                    handle.write(piece)
                handle.flush()
                os.fsync(handle.fileno())
            if digest.hexdigest() != sha256:
                raise DataError(
                    f"{storage.shown(name)} is not the file that the dataset was built with (its SHA-256 differs): "
                    f"{REMEDY}."
                )
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)


def check_blocks(file: Path, info: SplitInfo, blocks: np.ndarray, itemsize: int) -> None:
    """Raises DataError if a row of the blocks table points outside its shard, or the rows do not add up."""
    sizes = np.array([shard.bytes for shard in info.shards], dtype=np.uint64)
    tokens, before, problem = 0, -1, None
    for start in range(0, len(blocks), _ROWS):
        part = blocks[start : start + _ROWS]
        problem = problem or _block_problem(part, sizes, itemsize)
        tokens += int(part["tokens"].sum())
        firsts = np.concatenate([[before], part["first_document"].astype(np.int64)])
        if bool(np.any(np.diff(firsts) <= 0)) or (start == 0 and int(firsts[1]) != 0):
            problem = problem or "the blocks' documents are not in order"
        before = int(firsts[-1])
    if problem is None and before >= info.documents:
        problem = "the blocks' documents are not in order"
    if problem is None and tokens != info.tokens:
        problem = f"the blocks' tokens are not the {info.tokens} of the split"
    if problem is not None:
        raise DataError(f"{file} is damaged or forged ({problem}): {REMEDY}.")


def _block_problem(blocks: np.ndarray, shard_sizes: np.ndarray, itemsize: int) -> str | None:
    if int(blocks["shard"].max()) >= len(shard_sizes):
        return "a block lies in a shard that is not listed"
    sizes = shard_sizes[blocks["shard"]]
    # written so that no sum can overflow
    if bool(np.any(blocks["offset"] > sizes)) or bool(np.any(blocks["bytes"] > sizes - blocks["offset"])):
        return "a block lies beyond the end of its shard"
    if bool(np.any(blocks["bytes"] % itemsize)) or bool(np.any(blocks["bytes"] // itemsize != blocks["tokens"])):
        return f"a block's tokens do not take {itemsize} bytes each"
    return None


def check_hash(file: Path, sha256: str) -> None:
    """Raises DataError if a file is missing or does not have that SHA-256."""
    try:
        found = _hash(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): {REMEDY}.") from error
    if found != sha256:
        raise DataError(f"{file} is not the file that the dataset was built with (its SHA-256 differs): {REMEDY}.")


def _hash(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def shard_size_problem(file: Path, size: int) -> str | None:
    """What is wrong with a shard's existence or size (bytes), or None."""
    try:
        found = file.stat().st_size
    except OSError:
        return f"shard {file} is missing"
    return None if found == size else f"shard {file} has {found} bytes instead of {size}"
