"""Opens a built dataset and reads its blocks: every byte that is handed out has been checked.

What is checked when: on opening, the index's form, the tables' and the tokenizer's SHA-256 and every shard's size; on
reading, each block's CRC-32. The SHA-256 of whole shards is left to :mod:`data_pipeline.verify`, since it reads all
data.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from pydantic import ValidationError

from data_pipeline.blocks import BlockPlace, BlockReader, OnDamage, Quarantine
from data_pipeline.cache import BlockCache, write_whole
from data_pipeline.errors import DataError
from data_pipeline.schema import BLOCKS, DOCUMENTS, INDEX_FILE, Index, ShardInfo, SplitInfo, TableInfo, content_hash
from data_pipeline.split import SPLITS
from data_pipeline.storage import REMEDY, DamagedData, LocalStorage, Storage, open_storage
from data_pipeline.tokenizer import Tokenizer, load_tokenizer

log = logging.getLogger(__name__)

#: Bytes that a remote server may send as index.json or as the tokenizer's model.
_LARGEST_FILE = 1 << 30
#: Shards whose size is asked of a remote server on opening, so many at once; of a larger dataset the size is checked
#: with each block, since every answer to a range request tells it.
_ASKED, _AT_ONCE = 1024, 32


class Dataset:
    """A dataset directory, opened read-only. Use :meth:`open`; close it, or use it as a context manager.

    Attributes:
        path: the directory or URL.
        storage: what it is read through; its counters tell about retries and faults.
        disk_cache: the local cache of a remote dataset, if there is one.
        index: everything in ``index.json``.
    """

    def __init__(
        self,
        storage: Storage,
        index: Index,
        files: Path,
        cache_bytes: int = 256 * 1024 * 1024,
        disk_cache: BlockCache | None = None,
        on_damage: OnDamage = "stop",
    ) -> None:
        self.path, self.index, self.storage, self.disk_cache = storage.location, index, storage, disk_cache
        self._files = files
        dtype = np.dtype(index.dtype).newbyteorder("<")
        self._reader = BlockReader(storage, dtype, cache_bytes, disk_cache, index.hash)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._splits: dict[str, Split] = {}
        for name in SPLITS:
            info = index.splits.get(name)
            if info is not None:
                self._splits[name] = Split(name, info, index.tokenizer.bos_id, files, self._reader, on_damage)

    @classmethod
    def open(
        cls,
        path: Path | str,
        cache_bytes: int = 256 * 1024 * 1024,
        *,
        cache_dir: Path | None = None,
        cache_dir_bytes: int = 32 * 1024**3,
        on_damage: OnDamage = "stop",
        storage: Storage | None = None,
    ) -> Dataset:
        """Check and open the dataset at `path`.

        Args:
            path: its directory, or a URL of :data:`data_pipeline.storage.SCHEMES`.
            cache_bytes: memory for decoded blocks. A reader with L lanes profits while L blocks fit.
            cache_dir: for a URL: local directory that keeps blocks, tables and tokenizer, shared by all ranks of a
                machine; None keeps tables and tokenizer in a temporary directory and no blocks.
            cache_dir_bytes: budget of the blocks in it.
            on_damage: what a block does whose stored bytes are wrong: `stop` raises, `quarantine` makes it padding
                (see :attr:`Split.quarantined`).
            storage: read through this instead of what `path` names; for other time-outs.

        Raises:
            DataError: there is no dataset, or a file is missing, cut short, changed or of another format.
        """
        storage = storage or open_storage(path)
        index = read_index(storage)
        if content_hash(index.dtype, index.tokenizer, dict(index.splits)) != index.hash:
            file = storage.shown(INDEX_FILE)
            raise DataError(f"{file} is damaged or was changed (its hash does not fit its content): {REMEDY}.")
        temporary, cache = None, None
        if isinstance(storage, LocalStorage):
            files = storage.directory
        elif cache_dir is None:
            temporary = tempfile.TemporaryDirectory(prefix="pha-data-")
            files = Path(temporary.name)
        else:
            cache = BlockCache(cache_dir, cache_dir_bytes)
            files = cache_dir / "datasets" / index.hash
        if not isinstance(storage, LocalStorage):
            fetch_files(storage, index, files)
        check_hash(files / index.tokenizer.file, index.tokenizer.sha256)
        check_shards(storage, index, on_damage)
        dataset = cls(storage, index, files, cache_bytes, cache, on_damage)
        dataset._temporary = temporary
        return dataset

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
        path = self._files / self.index.tokenizer.file
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
        """Close all files and connections. Safe to call twice."""
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

    def __init__(
        self, name: str, info: SplitInfo, bos_id: int, path: Path, reader: BlockReader, on_damage: OnDamage = "stop"
    ) -> None:
        self.name, self.info, self.bos_id = name, info, bos_id
        self.documents, self.tokens, self.bytes, self.words = info.documents, info.tokens, info.bytes, info.words
        self.blocks = load_table(path, info.blocks_table, BLOCKS, info.blocks)
        self.document_table = load_table(path, info.documents_table, DOCUMENTS, info.documents)
        check_blocks(path / "index" / info.blocks_table.name, info, self.blocks, reader.dtype.itemsize)
        self.block_tokens: np.ndarray = self.blocks["tokens"].astype(np.int64)
        self._reader, self._quarantine = reader, Quarantine(name, len(self.blocks), on_damage)

    @property
    def quarantined(self) -> list[dict[str, Any]]:
        """The damaged blocks that were met and left out so far, ready for JSON, by number: see :class:`Quarantine`."""
        return [record for _, record in sorted(self._quarantine.records.copy().items())]

    def is_quarantined(self, number: int) -> bool:
        """Whether a block that was read is padding, because the stored one is damaged."""
        return number in self._quarantine.records

    def read_block(self, number: int) -> np.ndarray:
        """The tokens of a block, read-only, uint16 or uint32 [tokens].

        A damaged block raises, or with `quarantine` comes as so many separators; :meth:`is_quarantined` then tells.

        Raises:
            DataError: the shard is missing or cut short, the block's checksum is wrong, or it cannot be reached.
            IndexError: there is no such block.
        """
        if not 0 <= number < len(self.blocks):
            raise IndexError(f"block {number} of {len(self.blocks)}")
        row = self.blocks[number]
        shard = self.info.shards[int(row["shard"])]
        place = BlockPlace(shard.name, shard.bytes, number, int(row["offset"]), int(row["bytes"]), int(row["crc32"]))
        tokens = int(row["tokens"])
        if not self.is_quarantined(number):
            try:
                return self._reader.read(place)
            except DamagedData as error:
                self._quarantine.admit(place, tokens, error)
        padding = np.full(tokens, self.bos_id, dtype=self._reader.dtype)
        padding.flags.writeable = False
        return padding

    def iter_documents(self) -> Iterator[tuple[bytes, np.ndarray]]:
        """(hash, tokens without the separator) of every document in stored order. Raises DataError like read_block."""
        ends = np.append(self.blocks["first_document"][1:], self.documents)
        for number, (first, end) in enumerate(zip(self.blocks["first_document"], ends, strict=True)):
            block = self.read_block(number)
            for row in self.document_table[int(first) : int(end)]:
                start = int(row["offset"])
                yield row["hash"].tobytes(), block[start + 1 : start + int(row["tokens"])]


def read_index(place: Path | Storage) -> Index:
    """``index.json`` of a dataset. Raises DataError if it is missing or of another form."""
    storage = LocalStorage(place) if isinstance(place, Path) else place
    file = storage.shown(INDEX_FILE)
    try:
        return Index.model_validate_json(storage.read(INDEX_FILE, _LARGEST_FILE))
    except DamagedData as error:
        what = f"has no {INDEX_FILE}, so it is no dataset"
        if isinstance(storage, LocalStorage) and not storage.directory.exists():
            what = "does not exist"
        raise DataError(
            f"{storage.location} {what}: give the directory of a built dataset, or build it with pha data build."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(f"{file} is damaged or of another version ({where}: {first['msg']}): {REMEDY}.") from error
    finally:
        storage.close()


def fetch_files(storage: Storage, index: Index, target: Path) -> None:
    """Copy the tables and the tokenizer's model of a remote dataset into `target`, each checked before it appears.

    Files that are there and right stay; ranks that do this at the same time write the same bytes. Raises DataError.
    """
    wanted = [(index.tokenizer.file, index.tokenizer.sha256, _LARGEST_FILE)]
    for info in index.splits.values():
        for table, dtype, rows in (
            (info.blocks_table, BLOCKS, info.blocks),
            (info.documents_table, DOCUMENTS, info.documents),
        ):
            wanted.append((f"index/{table.name}", table.sha256, rows * dtype.itemsize + 4096))
    for name, sha256, limit in wanted:
        file = target / name
        if file.exists() and _hash(file) == sha256:
            continue
        try:
            data = storage.read(name, limit)
        except DamagedData as error:
            raise DataError(f"{error}: {REMEDY}.") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(
                f"{storage.shown(name)} is not the file that the dataset was built with (its SHA-256 differs): "
                f"{REMEDY}."
            )
        try:
            write_whole(file, data)
        except OSError as error:
            raise DataError(f"{file} cannot be written ({error.strerror}): choose another data.cache_dir.") from error


def check_shards(storage: Storage, index: Index, on_damage: OnDamage) -> None:
    """Look that the shards are there with their sizes. Raises DataError, or only warns with `quarantine`."""
    shards = [shard for info in index.splits.values() for shard in info.shards]
    local = isinstance(storage, LocalStorage)
    if not local and len(shards) > _ASKED:
        return

    def problem(shard: ShardInfo) -> str | None:
        try:
            found = storage.size(shard.name)
        except DamagedData:
            return f"shard {storage.shown(shard.name)} is missing"
        if found == shard.bytes:
            return None
        return f"shard {storage.shown(shard.name)} has {found} bytes instead of {shard.bytes}"

    with ThreadPoolExecutor(1 if local else _AT_ONCE, thread_name_prefix="sizes") as pool:
        for text in pool.map(problem, shards):
            if text is not None and on_damage == "stop":
                raise DataError(f"{text}: {REMEDY}.")
            if text is not None:
                log.warning("%s; its damaged blocks will be quarantined.", text)


def check_blocks(file: Path, info: SplitInfo, blocks: np.ndarray, itemsize: int) -> None:
    """Raises DataError if a row of the blocks table points outside its shard, or the rows do not add up."""
    problem = None
    if int(blocks["shard"].max()) >= len(info.shards):
        problem = "a block lies in a shard that is not listed"
    else:
        sizes = np.array([shard.bytes for shard in info.shards], dtype=np.uint64)[blocks["shard"]]
        # written so that no sum can overflow
        if bool(np.any(blocks["offset"] > sizes)) or bool(np.any(blocks["bytes"] > sizes - blocks["offset"])):
            problem = "a block lies beyond the end of its shard"
        elif bool(np.any(blocks["bytes"] % itemsize)) or bool(np.any(blocks["bytes"] // itemsize != blocks["tokens"])):
            problem = f"a block's tokens do not take {itemsize} bytes each"
        elif int(blocks["tokens"].sum()) != info.tokens:
            problem = f"the blocks' tokens are not the {info.tokens} of the split"
        elif bool(np.any(np.diff(blocks["first_document"].astype(np.int64)) <= 0)) or not (
            int(blocks["first_document"][0]) == 0 and int(blocks["first_document"][-1]) < info.documents
        ):
            problem = "the blocks' documents are not in order"
    if problem is not None:
        raise DataError(f"{file} is damaged or forged ({problem}): {REMEDY}.")


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
