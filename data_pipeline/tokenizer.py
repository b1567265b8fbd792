"""SentencePiece as a lossless code: ``decode(encode(text)) == text`` for every normalised text.

The model is trained with the identity normalisation, byte fallback, no dummy prefix and no white space removal, so no
character can get lost. Two things are done here rather than in the library, to make the round trip exact: the
character U+2581, which SentencePiece cannot tell from a space, is written as its three byte pieces; and ids are
turned into bytes by a table, which leaves no room for the library's clean-up rules.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece as spm

from data_pipeline.config import TokenizerConfig
from data_pipeline.errors import DataError

#: SentencePiece's own mark for a space.
_SPACE = "\u2581"
_SPACE_MARK_BYTES = _SPACE.encode("utf-8")
#: Longer lines are cut for training; the trainer would drop them.
_TRAINING_LINE = 4096
#: Part of the trained model's bytes and of unigram's summation order, so it is a constant, not the machine's core
#: count.
_TRAINING_THREADS = 4
#: Errors only. The trainer otherwise prints hundreds of lines.
_LOG_LEVEL = 2
_PROBES = (
    "a  b\n\n    c\td",
    " a",
    "a ",
    "  ",
    "0123",
    "e\u0301\u00e9 \u4e2d\u6587 \U0001f600",
    "<s> <unk> <0x41> </s>",
)


class Tokenizer:
    """A SentencePiece model with an exact round trip. Thread-safe; build one with :meth:`load`.

    Attributes:
        vocab_size: number of pieces; ids are below it.
        bos_id: the separator that starts every document and so also ends the one before it.
        pad_id: a padding id, or None where the model has none (padding then uses `bos_id`).
        hash: SHA-256 of the model file, in hexadecimal.
        kind: ``bpe`` or ``unigram``.
    """

    def __init__(self, model: bytes, name: str) -> None:
        self._processor = spm.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, OSError, ValueError) as error:
            raise DataError(f"{name} is not a SentencePiece model: restore the file or name another.") from error
        processor = self._processor
        self.hash = hashlib.sha256(model).hexdigest()
        self.vocab_size: int = processor.vocab_size()
        self.bos_id: int = processor.bos_id()
        self.pad_id: int | None = processor.pad_id() if processor.pad_id() >= 0 else None
        self.kind = _kind_of(processor)
        self._bytes = [_piece_bytes(processor, i) for i in range(self.vocab_size)]
        self._check(name)
        self._mark_ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK_BYTES]

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Read a model file.

        Raises:
            DataError: the file is missing, is no SentencePiece model, has no separator or byte pieces, or does not
                reproduce text exactly (a normalising model, or one that adds a leading space).
        """
        path = Path(path)
        try:
            model = path.read_bytes()
        except OSError as error:
            raise DataError(f"tokenizer {path} cannot be read ({error.strerror}): give an existing model.") from error
        return cls(model, f"tokenizer {path}")

    def encode(self, text: str) -> list[int]:
        """Ids of a normalised text, without the separator. Exact for every str without lone surrogates."""
        if _SPACE not in text:
            ids: list[int] = self._processor.EncodeAsIds(text)
            return ids
        head, *tail = text.split(_SPACE)
        ids = self._processor.EncodeAsIds(head)
        for part in tail:
            ids += self._mark_ids
            ids += self._processor.EncodeAsIds(part)
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

    def _check(self, name: str) -> None:
        if self.bos_id < 0:
            raise DataError(
                f"{name} has no beginning-of-sentence piece, which separates documents: train with bos_id >= 0."
            )
        if sum(self._processor.is_byte(i) for i in range(self.vocab_size)) != 256:
            raise DataError(
                f"{name} has no byte pieces, so unknown characters would be lost: train with byte_fallback."
            )
        for probe in _PROBES:
            if self.decode(self.encode(probe)) != probe:
                raise DataError(
                    f"{name} does not give back the text {probe!r}: train it with normalization_rule_name=identity, "
                    "add_dummy_prefix=false and remove_extra_whitespaces=false, or let the build train one."
                )


def _piece_bytes(processor: Any, token: int) -> bytes:
    piece: str = processor.id_to_piece(token)
    if processor.is_byte(token):
        return bytes([int(piece[1:-1], 16)])
    if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
        return b""
    return piece.replace(_SPACE, " ").encode("utf-8")


def _kind_of(processor: Any) -> str:
    # BPE scores are minus the merge's rank, whole numbers; unigram's are logarithms of probabilities.
    special = (processor.is_byte, processor.is_control, processor.is_unknown)
    scores = (processor.get_score(i) for i in range(processor.vocab_size()) if not any(f(i) for f in special))
    return "bpe" if all(score == int(score) for score in scores) else "unigram"


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig, path: Path) -> Tokenizer:
    """Train a model on normalised texts, write it to `path` and load it. The same texts give the same bytes.

    At most ``config.sample_bytes`` of the texts are read; all that is read is held in memory. Newline and tab are
    pieces of their own, runs of spaces are learned like words, digits stay single (for arithmetic and for stable
    numbers).

    Raises:
        DataError: the text is empty or supports no vocabulary of that size (with the nearest size that works).
    """
    lines = list(_training_lines(texts, config.sample_bytes))
    if not lines:
        raise DataError("there is no text to train a tokenizer on: add sources, or lower min_characters.")
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.Train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size,
            character_coverage=0.9995,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            user_defined_symbols=["\n", "\t"],
            unk_id=0,
            bos_id=1,
            eos_id=-1,
            pad_id=-1,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            max_sentence_length=8 * _TRAINING_LINE,
            num_threads=_TRAINING_THREADS,
            minloglevel=_LOG_LEVEL,
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise _explain(str(error), config) from error
    path.write_bytes(model.getvalue())
    return Tokenizer.load(path)


def _training_lines(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Lines of the texts, cut at what is a piece of its own anyway, up to `limit` bytes."""
    used = 0
    for text in texts:
        used += len(text.encode("utf-8"))
        for line in re.split(f"[\n\t{_SPACE}]", text):
            for start in range(0, len(line), _TRAINING_LINE):
                yield line[start : start + _TRAINING_LINE]
        if used >= limit:
            return


def _explain(message: str, config: TokenizerConfig) -> DataError:
    found = re.search(r"Vocabulary size too high \(\d+\).*?<= (\d+)", message)
    if found:
        return DataError(
            f"a {config.kind} vocabulary of {config.vocab_size} is larger than this text supports: "
            f"set vocab_size to {found[1]} or less, or add text."
        )
    found = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if found:
        return DataError(
            f"a vocabulary of {config.vocab_size} cannot hold the {int(found[1])} single characters of this text: "
            f"set vocab_size to more than {found[1]}."
        )
    if config.kind == "unigram" and "Vocabulary size" not in message:
        advice = "set vocab_size lower, add text, or use kind: bpe"
    else:
        advice = "set vocab_size lower or add text"
    return DataError(f"SentencePiece cannot train {config.kind} with {config.vocab_size} pieces ({message}): {advice}.")
