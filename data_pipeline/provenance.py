"""From sequences back to the documents that they were made of."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from data_pipeline.dataset import Split
from data_pipeline.stream import Stream

HASH_DIGITS = 12
"""Hexadecimal digits of a document's hash; `pha data show` finds it by them."""


def documents_of(stream: Stream, sequences: Iterable[int], most: int = 256) -> list[str]:
    """The first digits of the hashes of the documents whose tokens are in these sequences, each once.

    Args:
        stream: the order of the data.
        sequences: global numbers of sequences.
        most: no more documents are listed.

    Raises:
        DataError: the documents' table cannot be read.
    """
    found: dict[str, None] = {}
    for sequence in sequences:
        split, order, number = stream.find(sequence)
        for block, start, stop in order.locate(number):
            found.update(dict.fromkeys(_between(split, block, start, stop)))
        if len(found) >= most:
            break
    return list(found)[:most]


def _between(split: Split, block: int, start: int, stop: int) -> list[str]:
    """Of the documents that have some of the tokens [start, stop) of a block."""
    firsts = split.blocks["first_document"]
    end = int(firsts[block + 1]) if block + 1 < len(firsts) else split.documents
    table = split.document_table[int(firsts[block]) : end]
    begins = table["offset"].astype(np.int64)
    inside = table[(begins < stop) & (begins + table["tokens"] > start)]
    return [row["hash"].tobytes().hex()[:HASH_DIGITS] for row in inside]
