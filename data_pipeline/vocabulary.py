"""What every tokenizer of this package is: a lossless code from text to ids, with a table from ids back to bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.schema import token_dtype

Kind = Literal["bpe", "unigram", "gpt2"]


class Tokenizer(ABC):
    """A tokenizer with an exact round trip, whatever library does the work. Thread-safe; open one with :meth:`load`.

    Attributes:
        vocab_size: number of pieces; ids are below it.
        bos_id: the separator that starts every document and so also ends the one before it.
        pad_id: a padding id, or None where the model has none (padding then uses `bos_id`).
        hash: SHA-256 of the model file, in hexadecimal.
        kind: ``bpe`` or ``unigram`` (SentencePiece), or ``gpt2`` (byte-level BPE).
        file_name: what the model file is called inside a dataset.
    """

    vocab_size: int
    bos_id: int
    pad_id: int | None
    hash: str
    kind: Kind
    file_name: str

    def __init__(self, model: bytes, pieces: list[bytes]) -> None:
        self._model, self._bytes = model, pieces
        self.dtype = np.dtype(token_dtype(len(pieces))).newbyteorder("<")

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Open the model at `path`; see :func:`data_pipeline.tokenizer.load_tokenizer`."""
        from data_pipeline.tokenizer import load_tokenizer

        return load_tokenizer(path)

    @abstractmethod
    def encode_array(self, text: str) -> np.ndarray:
        """Ids of a normalised text, without the separator: uint16 or uint32 [tokens], as datasets store them."""

    def encode(self, text: str) -> list[int]:
        """Ids of a normalised text, without the separator. Exact for every str without lone surrogates."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; separators and other control pieces have none, broken UTF-8 becomes U+FFFD.

        Raises DataError for an id outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes that the ids stand for. Raises DataError for an id outside the vocabulary."""
        numbers = ids if isinstance(ids, list) else [int(i) for i in ids]
        try:
            if numbers and min(numbers) < 0:
                raise IndexError
            return b"".join(map(self._bytes.__getitem__, numbers))
        except IndexError:
            bad = next(i for i in numbers if not 0 <= i < self.vocab_size)
            raise DataError(
                f"token {bad} is outside the vocabulary of {self.vocab_size}: the ids come from another tokenizer."
            ) from None

    def byte_lengths(self) -> list[int]:
        """UTF-8 bytes of every piece by id, so that the text bytes of a block are a sum over its tokens."""
        return [len(piece) for piece in self._bytes]

    def save(self, path: Path) -> None:
        """Write the model file, from which :meth:`load` gives the same tokenizer with the same hash."""
        path.write_bytes(self._model)
