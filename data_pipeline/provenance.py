"""From sequences back to the documents that they were made of."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from data_pipeline.dataset import Split
from data_pipeline.order import Pieces
from data_pipeline.stream import Stream

HASH_DIGITS = 12
"""Hexadecimal digits of a document's hash; `pha data show` finds it by them."""


def documents_of(stream: Stream, sequences: Iterable[int], most: int = 256) -> list[str]:
    """The hashes' first digits of the documents whose tokens are in these sequences, in the order they are met.

    Args:
        stream: the order of the data.
        sequences: global numbers of sequences.
        most: no more documents are listed.

    Raises:
        DataError: the documents' table cannot be read.
    """
    numbers = np.fromiter(sequences, dtype=np.int64)
    found: dict[str, None] = {}
    for split, pieces in stream.locate_all(numbers):
        for row in np.argsort(pieces.row, kind="stable").tolist():
            found.update(dict.fromkeys(_of_piece(split, pieces, row)))
            if len(found) >= most:
                return list(found)[:most]
    return list(found)


def _of_piece(split: Split, pieces: Pieces, index: int) -> list[str]:
    block, start, stop = (int(values[index]) for values in (pieces.block, pieces.start, pieces.stop))
    firsts = split.blocks["first_document"]
    end = int(firsts[block + 1]) if block + 1 < len(firsts) else split.documents
    table = split.document_table[int(firsts[block]) : end]
    begins = table["offset"].astype(np.int64)
    inside = table[(begins < stop) & (begins + table["tokens"] > start)]
    return [row["hash"].tobytes().hex()[:HASH_DIGITS] for row in inside]
