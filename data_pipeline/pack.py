"""Turns runs of tokens into model inputs, labels and document numbers."""

from __future__ import annotations

import numpy as np

#: Label of a position that is not predicted; the value that PyTorch's cross entropy ignores.
IGNORE = -100


def pack_rows(rows: np.ndarray, lengths: np.ndarray, bos_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, labels and document numbers of B sequences.

    Args:
        rows: integers [B, T + 1]; row b holds ``lengths[b]`` tokens and then anything.
        lengths: int [B], from 0 to T + 1.
        bos_id: the separator, which begins a document and fills the padding.

    Returns:
        tokens: int64 [B, T], the inputs, with `bos_id` as padding.
        labels: int64 [B, T], the token after each input, or :data:`IGNORE` where there is none.
        documents: int32 [B, T], from 0 in each row and one higher from each separator on; the padding at the end of
            a row counts as one more document, so that no mask lets it see text.
    """
    length = rows.shape[1] - 1
    tokens, labels = rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64)
    begins = tokens == bos_id
    begins[:, 0] = False
    documents = np.cumsum(begins, axis=1, dtype=np.int32)
    for b in np.flatnonzero(lengths <= length):
        used = int(lengths[b])
        tokens[b, used:] = bos_id
        labels[b, max(0, used - 1) :] = IGNORE
        documents[b, used:] = documents[b, used - 1] + 1 if used else 0
    return tokens, labels, documents


def pack_documents(
    rows: list[list[tuple[np.ndarray, np.ndarray]]], seq_len: int, bos_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Like :func:`pack_rows`, for rows of whole documents or parts of them.

    Args:
        rows: for each of B sequences its items, each the inputs and their labels, integers [n] and [n]; together at
            most `seq_len` tokens.
        seq_len: T.
        bos_id: the separator, which fills the padding.

    Returns:
        tokens, labels, documents as from :func:`pack_rows`; here every item counts as a document, also the rest of
        one that was cut.
    """
    shape = (len(rows), seq_len)
    tokens, labels = np.full(shape, bos_id, dtype=np.int64), np.full(shape, IGNORE, dtype=np.int64)
    documents = np.zeros(shape, dtype=np.int32)
    for b, items in enumerate(rows):
        used = 0
        for number, (inputs, targets) in enumerate(items):
            stop = used + len(inputs)
            tokens[b, used:stop], labels[b, used:stop], documents[b, used:stop] = inputs, targets, number
            used = stop
        documents[b, used:] = len(items)
    return tokens, labels, documents
