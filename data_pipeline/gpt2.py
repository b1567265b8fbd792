"""GPT-2's byte-level BPE from its published files, for figures that can be compared with the literature.

The vocabulary comes as ``encoder.json`` (piece → id) and ``vocab.bpe`` (merges in order). Inside a dataset both are
one file, ``tokenizer.json``, in the form of the Hugging Face ``tokenizers`` library, so that others can open it. The
encoding itself is done by ``tiktoken``, about eight times as fast on one core.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from data_pipeline.errors import DataError
from data_pipeline.vocabulary import Tokenizer

SEPARATOR = "<|endoftext|>"
FILE_NAME = "tokenizer.json"
#: GPT-2's pattern with possessive quantifiers: the same words as the published one, without backtracking.
_WORDS = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def _byte_letters() -> dict[str, int]:
    """The printable letter that stands for each byte in GPT-2's files, as letter → byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}


_LETTERS = _byte_letters()


class Gpt2Tokenizer(Tokenizer):
    """Byte-level BPE with ``<|endoftext|>`` as the separator; the text ``<|endoftext|>`` itself is ordinary text."""

    file_name = FILE_NAME
    kind = "gpt2"

    def __init__(self, model: bytes, name: str) -> None:
        try:
            tree = json.loads(model)
            vocabulary: dict[str, int] = tree["model"]["vocab"]
            merges = [tuple(pair.split(" ")) for pair in tree["model"]["merges"]]
            pieces = _pieces(vocabulary)
            ranks = _ranks(vocabulary, merges)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{name} is no GPT-2 vocabulary ({error}): give the folder of the published encoder.json and vocab.bpe."
            ) from error
        super().__init__(model, pieces)
        self.hash = hashlib.sha256(model).hexdigest()
        self.vocab_size = len(pieces)
        self.bos_id = vocabulary[SEPARATOR]
        self.pad_id = None
        self._encoding = tiktoken.Encoding(
            "pha-gpt2", pat_str=_WORDS, mergeable_ranks=ranks, special_tokens={SEPARATOR: self.bos_id}
        )

    @classmethod
    def from_folder(cls, folder: Path) -> Gpt2Tokenizer:
        """Read ``encoder.json`` and ``vocab.bpe``. Raises DataError if one is missing or they do not fit together."""
        try:
            encoder = (folder / "encoder.json").read_text(encoding="utf-8")
            lines = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{folder} is no folder of GPT-2 files ({error}): it must hold encoder.json and vocab.bpe."
            ) from error
        try:
            vocabulary = json.loads(encoder)
        except ValueError as error:
            raise DataError(f"{folder}/encoder.json is not valid JSON ({error}): download it again.") from error
        merges = [line for line in lines if line and not line.startswith("#version")]
        return cls(_model_file(vocabulary, merges), str(folder))

    def encode_array(self, text: str) -> np.ndarray:
        """See :meth:`Tokenizer.encode_array`."""
        return np.asarray(self._encoding.encode_to_numpy(text, disallowed_special=()), dtype=self.dtype)


def _pieces(vocabulary: dict[str, int]) -> list[bytes]:
    """The bytes of every piece by id; the separator has none."""
    pieces: list[bytes | None] = [None] * len(vocabulary)
    for text, token in vocabulary.items():
        if type(token) is not int or not 0 <= token < len(pieces) or pieces[token] is not None:
            raise ValueError(f"the id of {text!r} is not one of 0 to {len(pieces) - 1}, each used once")
        pieces[token] = b"" if text == SEPARATOR else bytes(_LETTERS[letter] for letter in text)
    return [piece for piece in pieces if piece is not None]


def _ranks(vocabulary: dict[str, int], merges: list[tuple[str, ...]]) -> dict[bytes, int]:
    """Bytes → id for tiktoken, which merges in the order of ids: it must be the order of the merges."""
    if SEPARATOR not in vocabulary:
        raise ValueError(f"it has no {SEPARATOR}, which separates documents")
    ordered = [*_LETTERS, *("".join(pair) for pair in merges)]
    if len(ordered) + 1 != len(vocabulary) or any(len(pair) != 2 for pair in merges):
        raise ValueError(f"{len(vocabulary)} pieces are not 256 bytes, {len(merges)} merges and {SEPARATOR}")
    ids = [vocabulary[text] for text in ordered[256:]]
    if ids != sorted(ids) or any(vocabulary[letter] >= ids[0] for letter in _LETTERS if ids):
        raise ValueError("its merges are not in the order of their ids")
    return {bytes(_LETTERS[letter] for letter in text): vocabulary[text] for text in ordered}


def _model_file(vocabulary: dict[str, Any], merges: list[str]) -> bytes:
    """``tokenizer.json`` in canonical form, so that equal vocabularies have equal hashes."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    separator = {
        "id": vocabulary.get(SEPARATOR),
        "content": SEPARATOR,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocabulary,
        "merges": merges,
    }
    tree = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [separator],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }
    return (json.dumps(tree, sort_keys=True, separators=(",", ":")) + "\n").encode("ascii")
