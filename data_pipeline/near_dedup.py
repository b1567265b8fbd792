"""Near-duplicate removal by MinHash and locality-sensitive hashing (Broder 1997; Lee et al. 2022), on disk.

One pass over the documents writes each one's signature and band keys (:func:`sketch`, by as many processes as there
are ranges of documents); then (:func:`join_sketches`) each band is sorted by itself, documents that share a key are
candidates, candidates whose signatures agree enough are joined, and of every group of joined documents the one with
the smallest hash stays. Documents are renumbered by hash before any of that, so the result is a function of the set
of documents.

The signatures are computed with numpy: a library's sketch may change between versions (rensa numbers its algorithm
for that reason), and what a build drops must not.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.hashset import HashSet, sort_order
from data_pipeline.ngrams import mix, ngram_hashes, word_hashes
from data_pipeline.split import HASH_BYTES

#: Shingles a document is compared by: runs of so many words (FineWeb: 5).
SHINGLE = 5
#: Shingles that are hashed at once, and candidate pairs that are compared at once: they bound the memory of a step.
_SHINGLES_AT_ONCE = 2048
_PAIRS_AT_ONCE = 16_384
#: Samples in a report, and the bytes of a document's head in one.
_SAMPLES = 5
_HEAD = 100


@dataclass
class NearDedupReport:
    """`documents` distinct hashes went in; `dropped` of them, in `groups` groups of near duplicates, are to go.

    `candidates` pairs shared a band and `confirmed` of these had signatures that agree. `samples` are pairs of heads:
    the document that stays and one that goes.
    """

    documents: int = 0
    candidates: int = 0
    confirmed: int = 0
    groups: int = 0
    dropped: int = 0
    samples: list[tuple[str, str]] = field(default_factory=list)


def bands(permutations: int, threshold: float) -> tuple[int, int]:
    """How a signature is cut: (bands, values a band).

    The longest bands, dividing `permutations` evenly, that make a pair with similarity `threshold` + 0.1 candidates
    with a chance of at least 0.98: 1 - (1 - s^r)^b.
    """
    similarity = min(1.0, threshold + 0.1)
    for rows in range(permutations, 1, -1):
        if permutations % rows == 0 and 1 - (1 - similarity**rows) ** (permutations // rows) >= 0.98:
            return permutations // rows, rows
    return permutations, 1


def memory_estimate(documents: int, permutations: int = 128) -> int:
    """Peak bytes of numpy arrays that :func:`near_duplicates` holds for so many documents.

    Per document: hash 16, its two halves 16 and their sorting order 8, rank 8, parent 8; in a band: key 8, sorted
    key 8, order 8, candidate pairs 2 × 16 and their labels 16. Beside that two blocks of signatures. Eight million
    documents take 1.2 GB; signatures (4 bytes a permutation) and keys (8 bytes a band) are on disk, not in memory.
    """
    return documents * 144 + 3 * _PAIRS_AT_ONCE * permutations * 4 + _SHINGLES_AT_ONCE * permutations * 24


def signature(text: str, multipliers: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """MinHash signature of the set of word 5-grams of `text`: uint32 [permutations].

    A permutation is h → (a·h + b) mod 2^64, of which the upper 32 bits count (multiply-shift, Dietzfelbinger et al.
    1997). A text of fewer words has one shingle: all its words.
    """
    hashes = word_hashes(text)
    shingles = np.unique(ngram_hashes(hashes, max(1, min(SHINGLE, len(hashes)))))
    lowest = np.full(len(multipliers), np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(shingles), _SHINGLES_AT_ONCE):
        part = shingles[start : start + _SHINGLES_AT_ONCE]
        values = multipliers[:, None] * part[None, :]
        values += offsets[:, None]
        np.minimum(lowest, values.min(axis=1), out=lowest)
    return (lowest >> np.uint64(32)).astype(np.uint32)


def permutation_constants(permutations: int) -> tuple[np.ndarray, np.ndarray]:
    """The odd multipliers and the offsets of the permutations, uint64 [permutations] each; always the same."""
    numbers = mix(np.arange(2 * permutations, dtype=np.uint64))
    return numbers[:permutations] | np.uint64(1), numbers[permutations:]


def near_duplicates(
    documents: Iterable[tuple[bytes, str]],
    directory: Path,
    *,
    threshold: float = 0.75,
    permutations: int = 128,
) -> tuple[HashSet, NearDedupReport]:
    """The hashes of the documents to drop so that no two near duplicates are left that were found.

    Args:
        documents: (16-byte hash, normalised text), in any order; a repeated hash counts once.
        directory: an existing directory for the work files (512 bytes a document and 8 a band at 128 permutations,
            removed at the end) and for the result, ``near-duplicates``, which stays.
        threshold: estimated Jaccard similarity of word 5-grams from which two documents are near duplicates.
        permutations: length of a signature.

    Raises OSError if the disk is full.
    """
    work = _NearDedup(directory, threshold, permutations)
    try:
        work.write(documents)
        return work.join()
    finally:
        work.remove()


def sketch(
    documents: Iterable[tuple[bytes, str]], directory: Path, *, threshold: float = 0.75, permutations: int = 128
) -> None:
    """Leave signatures and band keys of some of the documents in an existing directory, for :func:`join_sketches`.

    Arguments as of :func:`near_duplicates`. Raises OSError if the disk is full.
    """
    _NearDedup(directory, threshold, permutations).write(documents)


def join_sketches(
    sketches: Iterable[Path], directory: Path, *, threshold: float = 0.75, permutations: int = 128
) -> tuple[HashSet, NearDedupReport]:
    """What :func:`near_duplicates` gives, from the directories in which :func:`sketch` has left all documents.

    Raises OSError if the disk is full.
    """
    work = _NearDedup(directory, threshold, permutations)
    try:
        work.gather(sketches)
        return work.join()
    finally:
        work.remove()


class _NearDedup:
    def __init__(self, directory: Path, threshold: float, permutations: int) -> None:
        self.directory, self.threshold, self.permutations = directory, threshold, permutations
        self.bands, self.rows = bands(permutations, threshold)
        self.report = NearDedupReport()
        self.paths: dict[str, Path] = {
            name: directory / f"near-{name}.tmp"
            for name in ("hashes", "heads", "signatures", *(f"band-{band}" for band in range(self.bands)))
        }

    def remove(self) -> None:
        for path in self.paths.values():
            path.unlink(missing_ok=True)

    def gather(self, sketches: Iterable[Path]) -> None:
        """One file of each kind out of those of all sketches."""
        places = list(sketches)
        for path in self.paths.values():
            with path.open("wb") as whole:
                for place in places:
                    with (place / path.name).open("rb") as piece:
                        shutil.copyfileobj(piece, whole, 1 << 20)

    def write(self, documents: Iterable[tuple[bytes, str]]) -> None:
        constants = permutation_constants(self.permutations)
        files: dict[str, Any] = {}
        try:
            for name, path in self.paths.items():
                files[name] = path.open("wb")
            for hash_, text in documents:
                values = signature(text, *constants)
                files["hashes"].write(hash_)
                files["heads"].write(text[:_HEAD].encode("utf-8", "replace")[:_HEAD].ljust(_HEAD))
                files["signatures"].write(values.tobytes())
                keys = ngram_hashes(values.astype(np.uint64), self.rows)[:: self.rows]
                for band in range(self.bands):
                    files[f"band-{band}"].write(keys[band : band + 1].tobytes())
        finally:
            for file in files.values():
                file.close()

    def join(self) -> tuple[HashSet, NearDedupReport]:
        return self._join(), self.report

    def _join(self) -> HashSet:
        result = self.directory / "near-duplicates"
        hashes = np.fromfile(self.paths["hashes"], np.uint8).reshape(-1, HASH_BYTES)
        if len(hashes) == 0:
            return HashSet.write(result, hashes)
        order = sort_order(hashes)
        hashes = hashes[order]
        first = np.ones(len(hashes), bool)  # of equal hashes
        first[1:] = (hashes[1:] != hashes[:-1]).any(axis=1)
        hashes, order = hashes[first], order[first]
        signatures = np.memmap(self.paths["signatures"], np.uint32, "r").reshape(-1, self.permutations)
        parents = np.arange(len(hashes))
        for band in range(self.bands):
            keys = np.fromfile(self.paths[f"band-{band}"], np.uint64)[order]
            for left, right in self._pairs(keys):
                self._confirm(left, right, parents, order, signatures)
        dropped = np.flatnonzero(parents != np.arange(len(parents)))
        self._finish_report(parents, dropped, order)
        return HashSet.write(result, hashes[dropped])

    @staticmethod
    def _pairs(keys: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs of documents with the same key: each with its neighbour, and each with the first of its group."""
        order = np.argsort(keys, kind="stable")
        same = np.zeros(len(keys), bool)
        same[1:] = keys[order][1:] == keys[order][:-1]
        places = np.flatnonzero(same)
        starts = np.maximum.accumulate(np.where(same, 0, np.arange(len(keys))))[places]
        far = places - 1 > starts
        return [(order[places - 1], order[places]), (order[starts[far]], order[places[far]])]

    def _confirm(
        self, left: np.ndarray, right: np.ndarray, parents: np.ndarray, order: np.ndarray, signatures: np.ndarray
    ) -> None:
        """Join the pairs whose signatures agree in `threshold` of their values; pairs joined already are skipped."""
        self.report.candidates += len(left)
        for start in range(0, len(left), _PAIRS_AT_ONCE):
            one, two = left[start : start + _PAIRS_AT_ONCE], right[start : start + _PAIRS_AT_ONCE]
            agree = np.mean(signatures[order[one]] == signatures[order[two]], axis=1) >= self.threshold
            self.report.confirmed += int(agree.sum())
            union(parents, one[agree], two[agree])

    def _finish_report(self, parents: np.ndarray, dropped: np.ndarray, order: np.ndarray) -> None:
        self.report.documents = len(parents)
        self.report.dropped = len(dropped)
        self.report.groups = len(np.unique(parents[dropped]))
        heads = np.memmap(self.paths["heads"], f"S{_HEAD}", "r")
        for number in dropped[:_SAMPLES]:
            kept, gone = (heads[order[place]].decode("utf-8", "ignore").strip() for place in (parents[number], number))
            self.report.samples.append((kept, gone))


def union(parents: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Join left[i] with right[i] in place; afterwards ``parents[x]`` is the smallest number of x's group, for every x.

    `parents` (int64) must be in that form before. Labels sink along the edges and are shortened until nothing moves.
    """
    while True:
        one, two = parents[left], parents[right]
        apart = one != two
        if not apart.any():
            return
        left, right, one, two = left[apart], right[apart], one[apart], two[apart]
        np.minimum.at(parents, np.maximum(one, two), np.minimum(one, two))
        while True:
            shorter = parents[parents]
            if np.array_equal(shorter, parents):
                break
            parents[:] = shorter
