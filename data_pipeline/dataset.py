"""Opens a built dataset and reads its blocks: every byte that is handed out has been checked.

What is checked when: on opening, the index's form, the tables' and the tokenizer's SHA-256 and every shard's size; on
reading, each block's CRC-32. The SHA-256 of whole shards is left to :mod:`data_pipeline.verify`, since it reads all
data.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from pydantic import ValidationError

from data_pipeline.errors import DataError
from data_pipeline.schema import BLOCKS, DOCUMENTS, INDEX_FILE, Index, SplitInfo, TableInfo
from data_pipeline.split import SPLITS
from data_pipeline.tokenizer import Tokenizer, load_tokenizer

#: What every sentence about a damaged file ends with.
REMEDY = "restore the file from a copy, or remove the dataset and rebuild with pha data build"
#: Open shards; below the usual limit of 1,024 descriptors a process.
_OPEN_SHARDS = 128


class Dataset:
    """A dataset directory, opened read-only. Use :meth:`open`; close it, or use it as a context manager.

    Attributes:
        path: the directory.
        index: everything in ``index.json``.
    """

    def __init__(self, path: Path, index: Index, cache_bytes: int) -> None:
        self.path, self.index = path, index
        self._reader = _BlockReader(path, np.dtype(index.dtype).newbyteorder("<"), cache_bytes)
        self._splits: dict[str, Split] = {}
        for name in SPLITS:
            info = index.splits.get(name)
            if info is not None:
                self._splits[name] = Split(name, info, index.tokenizer.bos_id, path, self._reader)

    @classmethod
    def open(cls, path: Path | str, cache_bytes: int = 256 * 1024 * 1024) -> Dataset:
        """Check and open the dataset at `path`.

        Args:
            path: its directory.
            cache_bytes: memory for decoded blocks. A reader with L lanes profits while L blocks fit.

        Raises:
            DataError: there is no dataset, or a file is missing, cut short, changed or of another format.
        """
        path = Path(path)
        index = read_index(path)
        check_hash(path / index.tokenizer.file, index.tokenizer.sha256)
        for info in index.splits.values():
            for shard in info.shards:
                problem = shard_size_problem(path / shard.name, shard.bytes)
                if problem is not None:
                    raise DataError(f"{problem}: {REMEDY}.")
        return cls(path, index, cache_bytes)

    @property
    def hash(self) -> str:
        """SHA-256 of the content: equal for datasets that hold the same tokens in the same order."""
        return self.index.hash

    @property
    def tokenizer_hash(self) -> str:
        """SHA-256 of the tokenizer's model file."""
        return self.index.tokenizer.sha256

    @property
    def vocab_size(self) -> int:
        """Pieces of the tokenizer; every token id is below it."""
        return self.index.tokenizer.vocab_size

    @property
    def bos_id(self) -> int:
        """The separator: the first token of every document."""
        return self.index.tokenizer.bos_id

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that this dataset has."""
        return tuple(self._splits)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that wrote the dataset. Raises DataError if its file has changed."""
        path = self.path / self.index.tokenizer.file
        check_hash(path, self.index.tokenizer.sha256)
        return load_tokenizer(path)

    def split(self, name: str) -> Split:
        """The split of that name. Raises DataError if the dataset was built without it."""
        try:
            return self._splits[name]
        except KeyError:
            raise DataError(
                f"{self.path} has no split {name!r}, only {', '.join(self._splits)}: rebuild it with a "
                "validation_fraction or test_fraction above 0, or use another split."
            ) from None

    def close(self) -> None:
        """Close all files. Safe to call twice."""
        self._reader.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Split:
    """One split of an open dataset; thread-safe.

    Attributes:
        name: ``train``, ``validation`` or ``test``.
        documents, tokens, bytes, words: totals; tokens count separators, bytes and words are of the normalised text.
        bos_id: the separator's id.
        blocks, document_table: the tables of :mod:`data_pipeline.schema`, mapped from disk.
        block_tokens: tokens of every block, int64 [blocks]: what an order is made from.
    """

    def __init__(self, name: str, info: SplitInfo, bos_id: int, path: Path, reader: _BlockReader) -> None:
        self.name, self.info, self.bos_id = name, info, bos_id
        self.documents, self.tokens, self.bytes, self.words = info.documents, info.tokens, info.bytes, info.words
        self.blocks = load_table(path, info.blocks_table, BLOCKS, info.blocks)
        self.document_table = load_table(path, info.documents_table, DOCUMENTS, info.documents)
        self.block_tokens: np.ndarray = self.blocks["tokens"].astype(np.int64)
        self._reader = reader

    def read_block(self, number: int) -> np.ndarray:
        """The tokens of a block, read-only, uint16 or uint32 [tokens].

        Raises:
            DataError: the shard is missing or cut short, or the block's checksum is wrong.
            IndexError: there is no such block.
        """
        if not 0 <= number < len(self.blocks):
            raise IndexError(f"block {number} of {len(self.blocks)}")
        row = self.blocks[number]
        shard = self.info.shards[int(row["shard"])].name
        return self._reader.read(shard, number, int(row["offset"]), int(row["bytes"]), int(row["crc32"]))

    def iter_documents(self) -> Iterator[tuple[bytes, np.ndarray]]:
        """(hash, tokens without the separator) of every document in stored order. Raises DataError like read_block."""
        ends = np.append(self.blocks["first_document"][1:], self.documents)
        for number, (first, end) in enumerate(zip(self.blocks["first_document"], ends, strict=True)):
            block = self.read_block(number)
            for row in self.document_table[int(first) : int(end)]:
                start = int(row["offset"])
                yield row["hash"].tobytes(), block[start + 1 : start + int(row["tokens"])]


class _BlockReader:
    """Reads checked blocks through a few open files and a cache, both with the least recently used leaving first."""

    def __init__(self, path: Path, dtype: np.dtype[Any], cache_bytes: int) -> None:
        self._path, self._dtype, self._room = path, dtype, cache_bytes
        self._files: OrderedDict[str, int] = OrderedDict()
        self._blocks: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: str, number: int, offset: int, size: int, crc32: int) -> np.ndarray:
        """The tokens of one block. Raises DataError."""
        key = shard, number
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
                return block
            data = self._pread(shard, number, offset, size)
            if zlib.crc32(data) != crc32:
                raise DataError(f"{self._path / shard}: block {number} is corrupt (its checksum is wrong): {REMEDY}.")
            block = np.frombuffer(data, dtype=self._dtype)
            self._room -= block.nbytes
            self._blocks[key] = block
            while self._room < 0 and len(self._blocks) > 1:
                self._room += self._blocks.popitem(last=False)[1].nbytes
            return block

    def _pread(self, shard: str, number: int, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._open(shard), size, offset)
            while data and len(data) < size:  # one call returns at most 2 GiB
                more = os.pread(self._open(shard), size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise DataError(
                f"{self._path / shard}: block {number} cannot be read ({error.strerror}): {REMEDY}."
            ) from error
        if len(data) < size:
            raise DataError(f"{self._path / shard} is cut short: block {number} is incomplete: {REMEDY}.")
        return data

    def _open(self, shard: str) -> int:
        descriptor = self._files.get(shard)
        if descriptor is not None:
            self._files.move_to_end(shard)
            return descriptor
        if len(self._files) >= _OPEN_SHARDS:
            os.close(self._files.popitem(last=False)[1])
        descriptor = os.open(self._path / shard, os.O_RDONLY)
        self._files[shard] = descriptor
        return descriptor

    def close(self) -> None:
        """Close all files and forget all blocks."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])
            while self._blocks:
                self._room += self._blocks.popitem()[1].nbytes


def read_index(path: Path) -> Index:
    """``index.json`` of a dataset directory. Raises DataError if it is missing or of another form."""
    file = path / INDEX_FILE
    try:
        return Index.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "does not exist" if not path.exists() else f"has no {INDEX_FILE}, so it is no dataset"
        raise DataError(
            f"{path} {what}: give the directory of a built dataset, or build it with pha data build."
        ) from error
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): check its permissions.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(f"{file} is damaged or of another version ({where}: {first['msg']}): {REMEDY}.") from error


def check_hash(file: Path, sha256: str) -> None:
    """Raises DataError if a file is missing or does not have that SHA-256."""
    try:
        with file.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): {REMEDY}.") from error
    if found != sha256:
        raise DataError(f"{file} is not the file that the dataset was built with (its SHA-256 differs): {REMEDY}.")


def shard_size_problem(file: Path, size: int) -> str | None:
    """What is wrong with a shard's existence or size (bytes), or None."""
    try:
        found = file.stat().st_size
    except OSError:
        return f"shard {file} is missing"
    return None if found == size else f"shard {file} has {found} bytes instead of {size}"


def load_table(path: Path, info: TableInfo, dtype: np.dtype[Any], rows: int) -> np.ndarray:
    """Map a table below ``index/`` after checking its hash, type and length. Raises DataError."""
    file = path / "index" / info.name
    check_hash(file, info.sha256)
    try:
        table: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is not a table ({error}): {REMEDY}.") from error
    if table.dtype != dtype or table.shape != (rows,):
        raise DataError(f"{file} does not fit {INDEX_FILE} ({table.shape[0]} rows, expected {rows}): {REMEDY}.")
    return table
