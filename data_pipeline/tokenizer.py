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
from typing import Any, Literal

import numpy as np
import sentencepiece as spm

from data_pipeline.config import TokenizerConfig
from data_pipeline.errors import DataError
from data_pipeline.gpt2 import Gpt2Tokenizer
from data_pipeline.schema import TOKENIZER_FILE as FILE_NAME
from data_pipeline.vocabulary import Tokenizer
from data_pipeline.word_memo import WordMemo, word_memo

__all__ = ["SentencePieceTokenizer", "Tokenizer", "load_tokenizer", "train_tokenizer"]

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


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model with an exact round trip; BPE goes through the exact word memo where the model allows."""

    file_name = FILE_NAME

    def __init__(self, model: bytes, name: str) -> None:
        processor = self._processor = spm.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model)
        except (RuntimeError, OSError, ValueError) as error:
            raise DataError(f"{name} is not a SentencePiece model: restore the file or name another.") from error
        super().__init__(model, [_piece_bytes(processor, i) for i in range(processor.vocab_size())])
        self.hash = hashlib.sha256(model).hexdigest()
        self.vocab_size = processor.vocab_size()
        self.bos_id = processor.bos_id()
        self.pad_id = processor.pad_id() if processor.pad_id() >= 0 else None
        self.kind = _kind_of(processor)
        marks = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK_BYTES]
        self._mark = np.array(marks, dtype=self.dtype).tobytes()
        self._memo: WordMemo | None = None
        self._check(name)
        self._memo = word_memo(model, processor.EncodeAsIds)

    def encode_array(self, text: str) -> np.ndarray:
        """See :meth:`Tokenizer.encode_array`."""
        if self._memo is None:
            return self.encode_plain(text)
        if _SPACE not in text:
            return np.frombuffer(self._memo.encode(text), dtype=self.dtype)
        return np.frombuffer(self._mark.join(map(self._memo.encode, text.split(_SPACE))), dtype=self.dtype)

    def encode_plain(self, text: str) -> np.ndarray:
        """The same ids from the library alone, without the memo: slower, and what the memo is held against."""
        parts = (np.array(self._processor.EncodeAsIds(part), dtype=self.dtype) for part in text.split(_SPACE))
        return np.frombuffer(self._mark.join(part.tobytes() for part in parts), dtype=self.dtype)

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


def _kind_of(processor: Any) -> Literal["bpe", "unigram"]:
    # BPE scores are minus the merge's rank, whole numbers; unigram's are logarithms of probabilities.
    special = (processor.is_byte, processor.is_control, processor.is_unknown)
    scores = (processor.get_score(i) for i in range(processor.vocab_size()) if not any(f(i) for f in special))
    return "bpe" if all(score == int(score) for score in scores) else "unigram"


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Open a tokenizer: a SentencePiece model, GPT-2's ``tokenizer.json``, or a folder of GPT-2's published files.

    Raises:
        DataError: the file is missing, is no tokenizer of these kinds, has no separator or byte pieces, or does not
            reproduce text exactly (a normalising model, or one that adds a leading space).
    """
    path = Path(path)
    name = f"tokenizer {path}"
    if path.is_dir():
        return Gpt2Tokenizer.from_folder(path)
    try:
        model = path.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror}): give an existing model.") from error
    # A serialised SentencePiece model begins with its first field's tag, 0x0A.
    return Gpt2Tokenizer(model, name) if model.startswith(b"{") else SentencePieceTokenizer(model, name)


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig, path: Path) -> SentencePieceTokenizer:
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
            required_chars=_SPACE,  # in text with hardly a space it would not be covered, and not come back
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
    return SentencePieceTokenizer(model.getvalue(), f"tokenizer {path}")


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
