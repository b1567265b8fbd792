"""Reads checked blocks out of a storage: through memory, a cache on disk, and the storage itself."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from data_pipeline.cache import BlockCache
from data_pipeline.checksum import crc32
from data_pipeline.errors import DataError
from data_pipeline.storage import REMEDY, DamagedData, Storage

log = logging.getLogger(__name__)

OnDamage = Literal["stop", "quarantine"]
#: With `quarantine`, a split stops all the same once more than this share of its blocks (and this many) are damaged.
QUARANTINE_SHARE = 0.001
QUARANTINE_LEAST = 8


@dataclass(frozen=True)
class BlockPlace:
    """Where a block lies: its split, shard name and the size it must have, number, byte offset, bytes and CRC-32."""

    split: str
    shard: str
    shard_bytes: int
    number: int
    offset: int
    bytes: int
    crc32: int


class BlockReader:
    """Blocks by place, with a bounded number of them kept in memory; who came first leaves first. Thread-safe.

    Args:
        storage: where the shards are.
        dtype: of the tokens.
        memory_bytes: for decoded blocks.
        cache: on disk; None goes without.
        dataset_hash: what the cached copies are copies of.

    Attributes:
        storage, dtype, cache, memory_bytes: as given.
    """

    def __init__(
        self, storage: Storage, dtype: np.dtype[Any], memory_bytes: int, cache: BlockCache | None, dataset_hash: str
    ) -> None:
        self.storage, self.cache, self.memory_bytes = storage, cache, memory_bytes
        self.dtype, self._room, self._dataset_hash = dtype, memory_bytes, dataset_hash
        self._blocks: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()  # by split and number
        self._lock = threading.Lock()

    def at_hand(self, split: str, numbers: Sequence[int]) -> list[np.ndarray | None]:
        """The blocks of a split that are in memory, and None for the others."""
        blocks = self._blocks  # one look-up is atomic, so that no lock is needed
        return [blocks.get((split, number)) for number in numbers]

    def read(self, place: BlockPlace) -> np.ndarray:
        """The tokens of one block that was not at hand, read-only; it is then.

        Raises:
            DamagedData: the stored block is corrupt, cut short or missing.
            DataError: it cannot be reached.
        """
        data = self._fetch(place)  # without the lock: fetching may take long
        block = np.frombuffer(data, dtype=self.dtype)
        with self._lock:
            self._forget((place.split, place.number))
            self._blocks[place.split, place.number] = block
            self._room -= block.nbytes
            while self._room < 0 and len(self._blocks) > 1:
                self._forget(next(iter(self._blocks)))
        return block

    def passed(self, split: str, numbers: Iterable[int]) -> None:
        """Hint that a reader has come to the end of these blocks and will not want them before the next epoch.

        From a near storage they are forgotten at once: memory that is used again is several times as fast to read into
        as fresh memory. From afar they stay, since a small dataset may be in memory whole by then.
        """
        if self.storage.at_once == 1:
            with self._lock:
                for number in numbers:
                    self._forget((split, number))

    def close(self) -> None:
        """Forget all blocks and close the storage, which opens itself again when it is needed."""
        with self._lock:
            while self._blocks:
                self._room += self._blocks.popitem()[1].nbytes
        self.storage.close()

    def _forget(self, key: tuple[str, int]) -> None:
        block = self._blocks.pop(key, None)
        if block is not None:
            self._room += block.nbytes

    def _fetch(self, place: BlockPlace) -> bytes:
        key = ""
        if self.cache is not None:
            key = BlockCache.key(
                str(self.storage.location), self._dataset_hash, place.shard, place.offset, place.bytes, place.crc32
            )
            cached = self.cache.get(key, place.bytes, place.crc32)
            if cached is not None:
                return cached
        for fresh in (False, True):  # a wrong byte may have come from a cache on the way, so ask once past it
            try:
                data = self.storage.read_range(place.shard, place.offset, place.bytes, place.shard_bytes, fresh)
            except DamagedData as error:
                raise DamagedData(f"{error}: block {place.number} is incomplete: {REMEDY}.") from error
            if crc32(data) == place.crc32:
                if self.cache is not None:
                    self.cache.put(key, data)
                return data
            self.storage.counters["fault_checksum"] += 1
        shard = self.storage.shown(place.shard)
        raise DamagedData(f"{shard}: block {place.number} is corrupt (its checksum is wrong): {REMEDY}.")


class Quarantine:
    """The damaged blocks of one split that were left out: which, why, and when there are too many. Thread-safe.

    Attributes:
        records: one JSON object a block, by number: block, shard, offset, bytes, tokens, reason.
    """

    def __init__(self, split: str, blocks: int, policy: OnDamage) -> None:
        self.records: dict[int, dict[str, Any]] = {}
        self._split, self._policy = split, policy
        self._limit = max(min(QUARANTINE_LEAST, blocks // 2), int(blocks * QUARANTINE_SHARE))
        self._lock = threading.Lock()

    def admit(self, place: BlockPlace, tokens: int, error: DamagedData) -> None:
        """Record a damaged block, logged once. Raises the error by the policy `stop`, DataError beyond the limit."""
        if self._policy == "stop":
            raise error
        with self._lock:
            if place.number in self.records:
                return
            if len(self.records) >= self._limit:
                raise DataError(
                    f"{self._split}: block {place.number} is damaged too, and {self._limit} damaged blocks of "
                    f"{place.shard} and others are already quarantined: a dataset this broken is not trained on; "
                    f"{REMEDY}."
                ) from error
            self.records[place.number] = {
                "split": self._split,
                "block": place.number,
                "shard": place.shard,
                "offset": place.offset,
                "bytes": place.bytes,
                "tokens": tokens,
                "reason": str(error),
            }
        log.warning("Quarantined block %d of %s (%d tokens): %s", place.number, self._split, tokens, error)
