"""Token streams of any length for evaluation: a file, long documents of a split, or a split in one piece."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.clean import normalise
from data_pipeline.corpus import Corpus
from data_pipeline.dataset import Split
from data_pipeline.tokenizer import Tokenizer
from pretrain.errors import RunError

TEXT_PIECE = 1 << 20
"""Characters of a file that are in memory at a time."""


@dataclass(frozen=True)
class LongText:
    """One document to be read from its first token to its last.

    Attributes:
        length: tokens, the separator at its start included; None of a file, which is not read to be counted.
        parts: its tokens in pieces, int [n]; they can be read once.
    """

    length: int | None
    parts: Iterator[np.ndarray]


class Window(NamedTuple):
    """A chunk of a text: `inputs` [n], the tokens that follow them `labels` [n], and the index of the first input."""

    inputs: np.ndarray
    labels: np.ndarray
    start: int


def windows(text: LongText, chunk: int, limit: int | None) -> Iterator[Window]:
    """Cut a text's first `limit` tokens into chunks, whatever the pieces that it comes in; each overlaps the next by
    the label that is its first input."""
    left = sys.maxsize if limit is None else limit
    held, start = np.empty(0, dtype=np.int64), 0
    for part in text.parts:
        taken = part[:left].astype(np.int64)
        left -= len(taken)
        held = np.concatenate([held, taken])
        while len(held) > chunk:
            yield Window(held[:chunk], held[1 : chunk + 1], start)
            held, start = held[chunk:], start + chunk
        if left <= 0:
            break
    if len(held) > 1:
        yield Window(held[:-1], held[1:], start)


def of_file(path: Path, tokenizer: Tokenizer) -> LongText:
    """A text file as one document, read and encoded in pieces that end with a line where there are lines.

    Each piece is normalised and encoded by itself: at such an end the tokens may differ from those of the whole text
    where a tokenizer joins white space across lines (GPT-2's does).

    Raises:
        RunError: the file cannot be read.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise RunError(f"The text {path} cannot be read ({error.strerror}); give a readable file.") from error

    def parts() -> Iterator[np.ndarray]:
        yield np.array([tokenizer.bos_id])
        with path.open(encoding="utf-8", errors="replace") as file:
            rest = ""
            while piece := file.read(TEXT_PIECE):
                head, line_end, tail = (rest + piece).rpartition("\n")
                if not line_end and len(tail) < 8 * TEXT_PIECE:
                    rest = tail
                    continue
                text, rest = (head + line_end, tail) if line_end else (tail, "")
                yield tokenizer.encode_array(normalise(text) + "\n" * text.endswith("\n"))
            if rest:
                yield tokenizer.encode_array(normalise(rest))

    return LongText(None, parts())


def of_split(corpus: Corpus, split_name: str) -> LongText:
    """All documents of a split in stored order as one stream; nothing ends at their separators.

    Raises DataError for another name.
    """
    splits = corpus.splits(split_name).values()
    blocks = (split.read_block(number) for split in splits for number in range(len(split.blocks)))
    return LongText(sum(split.tokens for split in splits), blocks)


def longest(corpus: Corpus, split_name: str, count: int) -> list[LongText]:
    """The `count` longest documents of a split, longest first. Raises DataError for another split's name."""
    found: list[tuple[int, Split, int]] = []
    for split in corpus.splits(split_name).values():
        lengths = split.document_table["tokens"].astype(np.int64)
        order = np.argsort(-lengths, kind="stable")[:count]
        found += [(int(lengths[document]), split, int(document)) for document in order]
    found.sort(key=lambda entry: -entry[0])
    return [LongText(length, _document(split, number)) for length, split, number in found[:count]]


def _document(split: Split, number: int) -> Iterator[np.ndarray]:
    """The tokens of one document, its separator first, when they are asked for."""
    block = int(np.searchsorted(split.blocks["first_document"], number, side="right")) - 1
    row = split.document_table[number]
    start = int(row["offset"])
    yield split.read_block(block)[start : start + int(row["tokens"])]
