"""The exact word memo in front of SentencePiece's BPE: equal ids at several times the speed.

BPE merges neighbouring symbols whose concatenation is a piece. Between two characters that no piece holds side by
side, nothing ever merges, and what happens on one side cannot be felt on the other: the text may be cut there, each
part encoded alone, and the ids joined. The *split law* used here cuts

- between a character that is no space and a space (pieces are white space followed by a word, never the reverse), and
- on both sides of every newline and tab (pieces of their own in the models that this package trains).

Whether a model obeys the law is read from its pieces when it is loaded: :func:`word_memo` returns None for one that
does not, and for everything else that could make the parts differ from the whole (unigram, a normaliser, a white
space suffix). Unigram is left out because sums of equal scores in another order give other segmentations.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from data_pipeline.schema import token_dtype

#: The parts of a text under the split law; joined, they are the text.
_PARTS = re.compile(" *[^ \n\t]+| +|\n|\t").findall
#: Longer parts (tables, languages written without spaces) rarely come again.
_LONGEST = 48
#: What the memo may hold; beyond it starts afresh. About 40 % of the entries of a 100 MB English text.
MEMO_ENTRIES = 300_000
MEMO_BYTES = 64 * 1024 * 1024
#: Bytes of an entry beside its key and value: a slot of the hash table, filled to two thirds at most.
_SLOT = 100
_BPE, _NORMAL, _USER_DEFINED, _UNUSED = 2, 1, 4, 5
_SPACE = "\u2581"


class WordMemo(dict[str, bytes]):
    """Maps a part of a text to the bytes of its ids; unknown parts are encoded, and kept while there is room.

    Safe to share between threads: a part that two threads miss at the same time is encoded twice, to the same ids.
    """

    def __init__(self, encode: Callable[[str], list[int]], dtype: str, entries: int, size: int) -> None:
        super().__init__()
        self._encode, self._dtype = encode, np.dtype(dtype).newbyteorder("<")
        self._entries, self._size = entries, size
        self._used = 0

    def __missing__(self, part: str) -> bytes:
        ids = np.array(self._encode(part), dtype=self._dtype).tobytes()
        if len(part) <= _LONGEST:
            cost = sys.getsizeof(part) + sys.getsizeof(ids) + _SLOT
            if len(self) >= self._entries or self._used + cost > self._size:
                self.clear()
                self._used = 0
            self._used += cost
            self[part] = ids
        return ids

    def encode(self, text: str) -> bytes:
        """The little-endian ids of a text, exactly those of the whole text encoded at once."""
        return b"".join(map(self.__getitem__, _PARTS(text)))


def word_memo(
    model: bytes, encode: Callable[[str], list[int]], entries: int = MEMO_ENTRIES, size: int = MEMO_BYTES
) -> WordMemo | None:
    """A memo for a serialised SentencePiece model, or None if the split law does not hold for it.

    Args:
        model: the model file's bytes.
        encode: the model's own encoder, from a text without U+2581 to ids.
        entries, size: bounds of the memo, in parts and in bytes of memory.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    if not _obeys_the_law(proto):
        return None
    return WordMemo(encode, token_dtype(len(proto.pieces)), entries, size)


def _obeys_the_law(proto: sentencepiece_model_pb2.ModelProto) -> bool:
    trainer, normaliser = proto.trainer_spec, proto.normalizer_spec
    plain = (
        trainer.model_type == _BPE
        and trainer.byte_fallback
        and not trainer.treat_whitespace_as_suffix
        and not normaliser.precompiled_charsmap
        and not normaliser.normalization_rule_tsv
        and not normaliser.add_dummy_prefix
        and not normaliser.remove_extra_whitespaces
        and normaliser.escape_whitespaces
    )
    return plain and all(
        _PARTS(text) == [text]
        for text in (
            piece.piece.replace(_SPACE, " ")
            for piece in proto.pieces
            if piece.type in (_NORMAL, _USER_DEFINED, _UNUSED)
        )
    )
