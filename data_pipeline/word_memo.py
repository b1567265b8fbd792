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
import threading
from collections.abc import Callable

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from data_pipeline.schema import token_dtype

#: The parts of a text under the split law; joined, they are the text.
_PARTS = re.compile(" *[^ \n\t]+| +|\n|\t").findall
#: Longer parts (tables, languages written without spaces) rarely come again.
_LONGEST = 48
#: What the memo may hold. A 100 MB English text has about 700,000 different parts.
MEMO_ENTRIES = 500_000
MEMO_BYTES = 128 * 1024 * 1024
#: Bytes of an entry beside its key and value: a slot of the hash table, filled to two thirds at most.
_SLOT = 100
#: Unknown parts that are encoded by one call, which costs half of a call for each; longer texts take longer a word.
_AT_ONCE = 128
_BPE, _NORMAL, _USER_DEFINED, _UNUSED = 2, 1, 4, 5
_SPACE = "\u2581"


class WordMemo:
    """Maps a part of a text to the bytes of its ids, as far as they are known; unknown parts are encoded together.

    When it is full, the half that came first is forgotten; what is frequent comes back with the next text. Safe to
    share between threads: a part that two threads miss at the same time is encoded twice, to the same ids.

    Args:
        encode: a text's ids, each of them below 2^16 or 2^32 as `dtype` says; obeys the split law.
        dtype: of the ids as bytes.
        entries, size: bounds, in parts and in bytes of memory.
    """

    def __init__(self, encode: Callable[[str], list[int]], dtype: str, entries: int, size: int) -> None:
        self._encode, self._dtype = encode, np.dtype(dtype).newbyteorder("<")
        self._entries, self._size = entries, size
        self._known: dict[str, bytes] = {}
        self._used = 0
        self._lock = threading.Lock()
        (self._newline,) = encode("\n")

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, part: str) -> bool:
        return part in self._known

    def encode(self, text: str) -> bytes:
        """The little-endian ids of a text, exactly those of the whole text encoded at once."""
        parts, known = _PARTS(text), self._known
        try:
            return b"".join(map(known.__getitem__, parts))
        except KeyError:
            learned = self._learn([part for part in dict.fromkeys(parts) if part not in known])
        get = known.get  # of before: what was learned may have pushed something out of the present one
        return b"".join([get(part) or learned[part] for part in parts])

    def _learn(self, missing: list[str]) -> dict[str, bytes]:
        """The ids of unknown parts; what is short enough is kept."""
        found: dict[str, bytes] = {}
        for first in range(0, len(missing), _AT_ONCE):
            some = missing[first : first + _AT_ONCE]
            found.update(zip(some, self._encode_all(some), strict=True))
        with self._lock:
            for part, ids in found.items():
                if len(part) <= _LONGEST and part not in self._known:
                    self._keep(part, ids)
        return found

    def _encode_all(self, parts: list[str]) -> list[bytes]:
        """Each part's ids: all in one text, with newlines between, which by the law nothing is merged across."""
        lines = ["" if part == "\n" else part for part in parts]
        ids = np.array(self._encode("\n".join(lines)), dtype=self._dtype)
        ends = [*np.flatnonzero(ids == self._newline).tolist(), len(ids)]
        starts = [0, *(end + 1 for end in ends[:-1])]
        newline = np.array([self._newline], dtype=self._dtype).tobytes()
        return [
            newline if part == "\n" else ids[start:end].tobytes()
            for part, start, end in zip(parts, starts, ends, strict=True)
        ]

    def _keep(self, part: str, ids: bytes) -> None:
        cost = _cost(part, ids)
        if cost > self._size // 2:
            return
        if len(self._known) >= self._entries or self._used + cost > self._size:
            self._known, self._used = self._later_half()
        self._used += cost
        self._known[part] = ids

    def _later_half(self) -> tuple[dict[str, bytes], int]:
        """What came last, up to half of both bounds, and its bytes; a new dict, since another thread may be reading."""
        kept: list[tuple[str, bytes]] = []
        used = 0
        for part, ids in reversed(self._known.items()):
            used += _cost(part, ids)
            if len(kept) >= self._entries // 2 or used > self._size // 2:
                used -= _cost(part, ids)
                break
            kept.append((part, ids))
        return dict(reversed(kept)), used


def _cost(part: str, ids: bytes) -> int:
    return sys.getsizeof(part) + sys.getsizeof(ids) + _SLOT


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
    if not _obeys_the_law(proto) or len(encode("\n")) != 1:
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
