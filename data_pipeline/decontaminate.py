"""Removes from the training set what also stands in held-out text, by shared word n-grams (Brown et al. 2020, app. C).

GPT-3 used 13 words, lower case, without punctuation. A document that shares one such n-gram with a validation or test
document, or with a file of an evaluation's text, is dropped whole. Held-out documents shorter than n words have no
n-gram and are not searched for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipeline.hashset import HashSet
from data_pipeline.ngrams import ngram_hashes, word_hashes, words

#: Hashes that are collected before they are merged into the sorted array (32 MB).
_BATCH = 4_000_000
_SAMPLES = 5
_HEAD = 100


@dataclass
class DecontaminationReport:
    """Of `documents` (`bytes` of UTF-8) training documents, `dropped` (`bytes_dropped`) share text with held-out ones.

    `held_out_ngrams` are distinct. A sample is the head of a dropped document and the first n-gram that it shares.
    """

    documents: int = 0
    bytes: int = 0
    held_out_ngrams: int = 0
    dropped: int = 0
    bytes_dropped: int = 0
    samples: list[tuple[str, str]] = field(default_factory=list)

    def merge(self, other: DecontaminationReport) -> None:
        """Add what was found in the documents that follow, with the same held-out text."""
        self.documents += other.documents
        self.bytes += other.bytes
        self.held_out_ngrams = other.held_out_ngrams
        self.dropped += other.dropped
        self.bytes_dropped += other.bytes_dropped
        self.samples = [*self.samples, *other.samples][:_SAMPLES]


def held_out_ngrams(texts: Iterable[str], n: int = 13) -> np.ndarray:
    """Sorted distinct hashes of the word n-grams of held-out texts: uint64 [n-grams], 8 bytes each.

    400 MB of held-out text (1 % of OpenWebText) give about 65 million: 0.5 GB, and twice that while merging.
    """
    result = np.zeros(0, np.uint64)
    waiting: list[np.ndarray] = []
    for text in texts:
        waiting.append(ngram_hashes(word_hashes(text), n))
        if sum(map(len, waiting)) >= max(_BATCH, len(result)):
            result, waiting = np.unique(np.concatenate([result, *waiting])), []
    return np.unique(np.concatenate([result, *waiting]))


def contaminated(
    documents: Iterable[tuple[bytes, str]], ngrams: np.ndarray, directory: Path, *, n: int = 13
) -> tuple[HashSet, DecontaminationReport]:
    """The hashes of the training documents that share an n-gram with held-out text.

    Args:
        documents: (16-byte hash, normalised text) of training documents only.
        ngrams: what :func:`held_out_ngrams` returned for the same `n`.
        directory: an existing directory; the result is kept there as ``contaminated``.
    """
    report = DecontaminationReport(held_out_ngrams=len(ngrams))
    dropped: list[bytes] = []
    for hash_, text in documents:
        size = len(text.encode("utf-8", "surrogatepass"))
        report.documents += 1
        report.bytes += size
        place = first_shared(text, ngrams, n)
        if place is None:
            continue
        dropped.append(hash_)
        report.dropped += 1
        report.bytes_dropped += size
        if len(report.samples) < _SAMPLES:
            report.samples.append((text[:_HEAD], " ".join(words(text)[place : place + n])))
    return HashSet.of(directory / "contaminated", dropped), report


def first_shared(text: str, ngrams: np.ndarray, n: int) -> int | None:
    """The word at which the first n-gram of `text` that is among `ngrams` begins, or None."""
    hashes = ngram_hashes(word_hashes(text), n)
    if len(hashes) == 0 or len(ngrams) == 0:
        return None
    places = np.minimum(np.searchsorted(ngrams, hashes), len(ngrams) - 1)
    shared = np.flatnonzero(ngrams[places] == hashes)
    return int(shared[0]) if len(shared) else None
