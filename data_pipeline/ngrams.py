"""Words and hashed word n-grams: the common ground of near-duplicate removal and decontamination.

Hashes are the same on every machine and in every process (CRC-32 of each word, mixed to 64 bits), unlike ``hash()``.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

#: A run of letters, digits and underscores; a Chinese, Japanese or Korean character counts as a word of its own,
#: because those scripts put no space between words.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def word_hashes(text: str) -> np.ndarray:
    """One hash a word, uint64 [words]."""
    found = words(text)
    # Encoded at once and cut again, at what no word holds: faster than word by word.
    encoded = "\n".join(found).encode("utf-8", "replace").split(b"\n") if found else []
    return mix(np.fromiter(map(zlib.crc32, encoded), np.uint64, len(found)))


def ngram_hashes(items: np.ndarray, n: int, places: np.ndarray | None = None) -> np.ndarray:
    """One hash for each run of `n` neighbours of `items` (uint64 [count]): uint64 [max(0, count - n + 1)].

    With `places` (int64, each at most count - n) only the runs that begin there: uint64 [len(places)].
    """
    count = max(0, len(items) - n + 1) if places is None else len(places)
    result = np.zeros(count, np.uint64)
    for start in range(n if count else 0):
        result *= _MULTIPLIER
        result += items[start : start + count] if places is None else items[places + start]
    return mix(result)


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): a bijection of uint64 under which every output bit looks random."""
    values = values + _MULTIPLIER
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
