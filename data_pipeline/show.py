"""One document of a dataset, looked up by its number or by the beginning of its hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.dataset import Dataset, Split
from data_pipeline.errors import DataError
from data_pipeline.split import HASH_BYTES

#: A wanted document of digits only and shorter than this is a number; hashes of digits only can be given longer.
_LONGEST_NUMBER = 11
#: Rows of the documents table that are compared at once.
_ROWS = 1 << 20


def show(path: Path | str, wanted: str) -> dict[str, Any]:
    """The document `wanted` of the dataset at `path`, ready for JSON.

    Args:
        path: the dataset.
        wanted: a number, counted from 0 through train, validation and test; or the first hexadecimal digits of a
            document's hash.

    Returns:
        `hash`, `split`, `number` (over all splits), `row` (in the split), `block`, `shard`, `tokens` (without the
        separator), `bytes`, `text`.

    Raises:
        DataError: there is no such document, more than one, or the block is damaged.
    """
    with Dataset.open(path) as dataset:
        splits = [dataset.split(name) for name in dataset.split_names]
        if wanted.isdecimal() and len(wanted) <= _LONGEST_NUMBER:
            split, row = _by_number(splits, int(wanted), dataset.path)
        else:
            split, row = _by_hash(splits, wanted, dataset.path)
        number = row
        for before in splits[: splits.index(split)]:
            number += before.documents
        block = int(np.searchsorted(split.blocks["first_document"], row, side="right")) - 1
        entry = split.document_table[row]
        start = int(entry["offset"])
        ids = split.read_block(block)[start + 1 : start + int(entry["tokens"])]
        data = dataset.tokenizer().decode_bytes(ids.tolist())
        return {
            "hash": entry["hash"].tobytes().hex(),
            "split": split.name,
            "number": number,
            "row": row,
            "block": block,
            "shard": split.info.shards[int(split.blocks["shard"][block])].name,
            "tokens": len(ids),
            "bytes": len(data),
            "text": data.decode("utf-8", "replace"),
        }


def _by_number(splits: list[Split], number: int, path: Path) -> tuple[Split, int]:
    row = number
    for split in splits:
        if row < split.documents:
            return split, row
        row -= split.documents
    total = sum(split.documents for split in splits)
    raise DataError(f"{path} has no document {number}: its {total} documents are 0 to {total - 1}.")


def _by_hash(splits: list[Split], prefix: str, path: Path) -> tuple[Split, int]:
    try:
        digits = prefix.lower()
        if not digits:
            raise ValueError
        whole = bytes.fromhex(digits[: len(digits) // 2 * 2])
        half = int(digits[-1], 16) if len(digits) % 2 else None
    except ValueError:
        raise DataError(
            f"{prefix!r} is no document: give a number or the first hexadecimal digits of a hash."
        ) from None
    found: list[tuple[Split, int]] = []
    for split in splits if len(digits) <= 2 * HASH_BYTES else []:
        for first in range(0, split.documents, _ROWS):
            hashes = split.document_table["hash"][first : first + _ROWS]
            match = (hashes[:, : len(whole)] == np.frombuffer(whole, dtype=np.uint8)).all(axis=1)
            if half is not None:
                match &= hashes[:, len(whole)] >> 4 == half
            found += [(split, first + int(row)) for row in np.flatnonzero(match)[:2]]
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(f"{path} has no document whose hash begins with {prefix}: give other digits, or a number.")
    raise DataError(f"{path} has several documents whose hash begins with {prefix}: give more digits.")
