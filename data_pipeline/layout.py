"""Where blocks and shards begin and end, and the writing of one shard from the encoded ranges.

The layout is that of documents written one after the other, worked out beforehand from their lengths: so any process
can write any shard, and the cut depends on nothing but the documents.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.build_plan import Plan, finished_directory
from data_pipeline.checksum import crc32
from data_pipeline.encode import ROWS, tokenizer_of
from data_pipeline.encode import STAGE as ENCODED
from data_pipeline.schema import BLOCKS, DOCUMENTS, ShardInfo
from data_pipeline.shards import MEMBER_HEADER, ShardWriter, padded, shard_name
from data_pipeline.split import SplitName

STAGE = "shards"
#: A bit above 512, the wanted number of blocks: whole documents make blocks larger than their target.
WANTED_BLOCKS = 640
SMALLEST_BLOCK, LARGEST_BLOCK = 1024, 65_536


def choose_block_tokens(train_tokens: int) -> int:
    """Tokens of a block so that train has enough blocks to shuffle."""
    return max(SMALLEST_BLOCK, min(LARGEST_BLOCK, train_tokens // WANTED_BLOCKS))


def read_rows(plan: Plan, split: SplitName, ranges: int) -> list[np.ndarray]:
    """The rows of a split, range by range. Raises OSError."""
    return [np.fromfile(plan.result(ENCODED, number) / f"{split}.rows", dtype=ROWS) for number in range(ranges)]


@dataclass(frozen=True)
class SplitLayout:
    """`blocks` without checksums, `documents`, and the number of tokens in each encoded range."""

    blocks: np.ndarray
    documents: np.ndarray
    range_tokens: np.ndarray


def lay_out(rows: list[np.ndarray], itemsize: int, block_tokens: int, shard_bytes: int) -> SplitLayout:
    """Cut documents into blocks and blocks into shards: each is closed by what brings it to its target or beyond."""
    tokens = np.concatenate([part["tokens"] for part in rows]).astype(np.int64)
    ends = np.cumsum(tokens)
    starts = ends - tokens
    firsts = _cut(ends, block_tokens)
    stops = np.append(firsts[1:], len(tokens))
    blocks = np.zeros(len(firsts), BLOCKS)
    blocks["first_document"] = firsts
    blocks["tokens"] = ends[stops - 1] - starts[firsts]
    blocks["bytes"] = blocks["tokens"] * np.uint64(itemsize)
    members = np.array([MEMBER_HEADER + padded(size) for size in blocks["bytes"].tolist()], dtype=np.int64)
    member_ends = np.cumsum(members)
    shard_firsts = _cut(member_ends, shard_bytes)
    blocks["shard"] = np.searchsorted(shard_firsts, np.arange(len(blocks)), side="right") - 1
    shard_starts = (member_ends - members)[shard_firsts][blocks["shard"]]
    blocks["offset"] = member_ends - members - shard_starts + MEMBER_HEADER
    documents = np.zeros(len(tokens), DOCUMENTS)
    documents["hash"] = np.concatenate([part["hash"] for part in rows])
    documents["tokens"] = tokens
    documents["offset"] = starts - np.repeat(starts[firsts], stops - firsts)
    sums = np.array([int(part["tokens"].sum(dtype=np.int64)) for part in rows], dtype=np.int64)
    return SplitLayout(blocks, documents, sums)


def _cut(ends: np.ndarray, target: int) -> np.ndarray:
    """First items of the groups, given the running total after each item: a group ends once it reaches `target`."""
    firsts, first, before = [], 0, 0
    while first < len(ends):
        firsts.append(first)
        last = min(int(np.searchsorted(ends, before + target)), len(ends) - 1)
        first, before = last + 1, int(ends[last])
    return np.array(firsts, dtype=np.int64)


def save_layout(directory: Path, split: SplitName, layout: SplitLayout) -> None:
    """Write a layout for the processes that write shards. Raises OSError."""
    for name in ("blocks", "documents", "range_tokens"):
        np.save(directory / f"{split}.{name}.npy", getattr(layout, name), allow_pickle=False)


def load_layout(plan: Plan, split: SplitName) -> SplitLayout:
    """Map a layout from disk. Raises OSError."""
    names = ("blocks", "documents", "range_tokens")
    base = plan.result("layout", "splits")
    return SplitLayout(*(np.load(base / f"{split}.{n}.npy", mmap_mode="r", allow_pickle=False) for n in names))


def write_shard(plan: Plan, split: SplitName, number: int) -> tuple[int, int]:
    """Write one shard with its checksums; gives its documents and bytes. Raises OSError."""
    layout = load_layout(plan, split)
    rows = np.flatnonzero(layout.blocks["shard"] == number)
    first, last = int(rows[0]), int(rows[-1])
    dtype = tokenizer_of(plan).dtype
    name = shard_name(split, number)
    sizes = layout.blocks["tokens"].astype(np.int64)
    begin = int(sizes[:first].sum())
    with finished_directory(plan.result(STAGE, name)) as directory:
        reader = _TokenReader(plan, split, layout.range_tokens, dtype.itemsize)
        with ShardWriter(directory / name) as writer:
            checksums = np.zeros(len(rows), dtype="<u4")
            for index, row in enumerate(rows.tolist()):
                data = reader.read(begin, begin + int(sizes[row]))
                begin += int(sizes[row])
                offset = writer.add(row, data)
                assert offset == int(layout.blocks["offset"][row]), "the layout has to foretell the tar file"
                checksums[index] = crc32(data)
        np.save(directory / "checksums.npy", checksums, allow_pickle=False)
        info = ShardInfo(
            name=name,
            bytes=writer.size,
            sha256=writer.sha256,
            blocks=len(rows),
            tokens=int(sizes[first : last + 1].sum()),
        )
        (directory / "record.json").write_text(json.dumps(info.model_dump()), encoding="utf-8")
    return len(rows), writer.size


class _TokenReader:
    """Reads tokens of a split by their place in the whole split, across the files of the ranges."""

    def __init__(self, plan: Plan, split: SplitName, range_tokens: np.ndarray, itemsize: int) -> None:
        self._plan, self._split, self._itemsize = plan, split, itemsize
        self._starts = np.concatenate([[0], np.cumsum(range_tokens)])

    def read(self, begin: int, end: int) -> bytes:
        """The bytes of the tokens [begin, end)."""
        parts: list[bytes] = []
        number = int(np.searchsorted(self._starts, begin, side="right")) - 1
        while begin < end:
            stop = min(end, int(self._starts[number + 1]))
            if stop > begin:
                path = self._plan.result(ENCODED, number) / f"{self._split}.tokens"
                with path.open("rb") as file:
                    file.seek((begin - int(self._starts[number])) * self._itemsize)
                    parts.append(file.read((stop - begin) * self._itemsize))
            begin, number = stop, number + 1
        return b"".join(parts)
