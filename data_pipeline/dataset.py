"""Opens a built dataset and reads its blocks: every byte that is handed out has been checked.

What is checked when: on opening, the index's form, the SHA-256 of the tables of blocks and of the tokenizer, and every
shard's size; on reading, each block's CRC-32, and the SHA-256 of the documents table where it is used. The SHA-256 of
whole shards is left to :mod:`data_pipeline.verify`, since it reads all data.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from pydantic import ValidationError

from data_pipeline.blocks import BlockPlace, BlockReader, OnDamage, Quarantine
from data_pipeline.cache import BlockCache
from data_pipeline.errors import DataError
from data_pipeline.index_files import LARGEST_FILE, IndexFiles, check_blocks
from data_pipeline.schema import BLOCKS, DOCUMENTS, INDEX_FILE, Index, ShardInfo, SplitInfo, content_hash
from data_pipeline.split import SPLITS
from data_pipeline.storage import REMEDY, DamagedData, LocalStorage, Storage, open_storage
from data_pipeline.tokenizer import Tokenizer, load_tokenizer

log = logging.getLogger(__name__)

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
        files: IndexFiles,
        cache_bytes: int = 256 * 1024 * 1024,
        disk_cache: BlockCache | None = None,
        on_damage: OnDamage = "stop",
    ) -> None:
        self.path, self.index, self.storage, self.disk_cache = storage.location, index, storage, disk_cache
        self._files = files
        dtype = np.dtype(index.dtype).newbyteorder("<")
        self._reader = BlockReader(storage, dtype, cache_bytes, disk_cache, index.hash)
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
            directory = storage.directory
        elif cache_dir is None:
            temporary = tempfile.TemporaryDirectory(prefix="pha-data-")
            directory = Path(temporary.name)
        else:
            cache = BlockCache(cache_dir, cache_dir_bytes)
            directory = cache_dir / "datasets" / index.hash
        files = IndexFiles(storage, directory, temporary)
        files.require(index.tokenizer.file, index.tokenizer.sha256)
        check_shards(storage, index, on_damage)
        return cls(storage, index, files, cache_bytes, cache, on_damage)

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
        return load_tokenizer(self._files.require(self.index.tokenizer.file, self.index.tokenizer.sha256))

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
        blocks: the table of :mod:`data_pipeline.schema`, mapped from disk.
        dtype: of the tokens as they are stored, little-endian uint16 or uint32.
        block_tokens: tokens of every block, int64 [blocks]: what an order is made from.
        blocks_at_once: how many blocks to ask :meth:`read_blocks` for at most, so that they fit the memory for blocks.
    """

    def __init__(
        self,
        name: str,
        info: SplitInfo,
        bos_id: int,
        files: IndexFiles,
        reader: BlockReader,
        on_damage: OnDamage = "stop",
    ) -> None:
        self.name, self.info, self.bos_id = name, info, bos_id
        self.documents, self.tokens, self.bytes, self.words = info.documents, info.tokens, info.bytes, info.words
        self.blocks = files.table(info.blocks_table, BLOCKS, info.blocks)
        check_blocks(files.directory / "index" / info.blocks_table.name, info, self.blocks, reader.dtype.itemsize)
        self.block_tokens: np.ndarray = self.blocks["tokens"].astype(np.int64)
        self.dtype = reader.dtype
        largest = int(self.block_tokens.max()) * reader.dtype.itemsize
        self.blocks_at_once = max(1, reader.memory_bytes // largest)
        self._files, self._reader = files, reader
        self._quarantine = Quarantine(name, len(self.blocks), on_damage)

    @cached_property
    def document_table(self) -> np.ndarray:
        """The table of :mod:`data_pipeline.schema`, fetched and checked when it is first asked for, since training on
        a stream of tokens never does: it is four times as large as that of the blocks. Raises DataError.
        """
        return self._files.table(self.info.documents_table, DOCUMENTS, self.info.documents)

    @property
    def quarantined(self) -> list[dict[str, Any]]:
        """The damaged blocks that were met and left out so far, ready for JSON, by number: see :class:`Quarantine`."""
        return [record for _, record in sorted(self._quarantine.records.copy().items())]

    @property
    def has_quarantined(self) -> bool:
        """Whether any block that was read is padding, because the stored one is damaged."""
        return bool(self._quarantine.records)

    def is_quarantined(self, number: int) -> bool:
        """Whether this block was read and is padding, because the stored one is damaged."""
        return number in self._quarantine.records

    def read_block(self, number: int) -> np.ndarray:
        """The tokens of a block, read-only, uint16 or uint32 [tokens]; see :meth:`read_blocks`."""
        return self.read_blocks([number])[0]

    def read_blocks(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """The tokens of blocks, read-only, uint16 or uint32 [tokens] each; from afar several at the same time.

        A damaged block raises, or with `quarantine` comes as so many separators; :meth:`is_quarantined` then tells.

        Raises:
            DataError: the shard is missing or cut short, the block's checksum is wrong, or it cannot be reached.
            IndexError: there is no such block.
        """
        found = self._reader.at_hand(self.name, numbers)
        missing = sorted({number for number, block in zip(numbers, found, strict=True) if block is None})
        if missing:
            at_once = min(self._reader.storage.at_once, len(missing))
            if at_once == 1:
                fresh = dict(zip(missing, map(self._fetch, missing), strict=True))
            else:
                with ThreadPoolExecutor(at_once, thread_name_prefix="blocks") as pool:
                    fresh = dict(zip(missing, pool.map(self._fetch, missing), strict=True))
            found = [fresh[number] if block is None else block for number, block in zip(numbers, found, strict=True)]
        return found  # type: ignore[return-value]  # nothing is missing any more

    def passed(self, numbers: Iterable[int]) -> None:
        """See :meth:`data_pipeline.blocks.BlockReader.passed`."""
        self._reader.passed(self.name, numbers)

    def _fetch(self, number: int) -> np.ndarray:
        if not 0 <= number < len(self.blocks):
            raise IndexError(f"block {number} of {len(self.blocks)}")
        shard_number, offset, size, checksum, tokens, _ = self.blocks[number].item()
        shard = self.info.shards[shard_number]
        place = BlockPlace(self.name, shard.name, shard.bytes, number, offset, size, checksum)
        if not self.is_quarantined(number):
            try:
                return self._reader.read(place)
            except DamagedData as error:
                self._quarantine.admit(place, tokens, error)
        padding = np.full(tokens, self.bos_id, dtype=self.dtype)
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
        return Index.model_validate_json(storage.read(INDEX_FILE, LARGEST_FILE))
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
