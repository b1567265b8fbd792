"""What a build drops because it stands elsewhere too: near duplicates, and training text that held-out text contains.

A build finds it when all documents are read and hashed and before any is written, by ranges of documents
(:mod:`data_pipeline.compare`); :func:`find_overlaps` does the same in one go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.clean import normalise
from data_pipeline.config import CleanConfig
from data_pipeline.decontaminate import DecontaminationReport, contaminated, held_out_ngrams
from data_pipeline.hashset import HashSet
from data_pipeline.near_dedup import NearDedupReport, near_duplicates
from data_pipeline.sources import read_documents

#: Gives all documents as (16-byte hash, normalised text), afresh at each call.
Documents = Callable[[], Iterator[tuple[bytes, str]]]


@dataclass(frozen=True)
class Overlaps:
    """The documents to drop, by reason, with the reports of what found them (None where it was not asked)."""

    near: tuple[HashSet, NearDedupReport] | None = None
    contaminated: tuple[HashSet, DecontaminationReport] | None = None

    @classmethod
    def open(cls, directory: Path) -> Overlaps:
        """What an earlier :func:`find_overlaps` left in `directory`. Raises OSError."""
        reports = json.loads((directory / "report.json").read_text(encoding="utf-8"))
        near, found = reports.get("near_duplicate"), reports.get("contaminated")
        return cls(
            None if near is None else (HashSet(directory / "near-duplicates"), NearDedupReport(**near)),
            None if found is None else (HashSet(directory / "contaminated"), DecontaminationReport(**found)),
        )

    def save(self, directory: Path) -> None:
        """Write the reports beside the sets, for :meth:`open`."""
        (directory / "report.json").write_text(json.dumps(self.report()), encoding="utf-8")

    def reason(self, document_hash: bytes) -> str | None:
        """Why this document goes: ``near_duplicate``, ``contaminated``, or None if it stays."""
        if self.near is not None and self.near[0].contains(document_hash):
            return "near_duplicate"
        if self.contaminated is not None and self.contaminated[0].contains(document_hash):
            return "contaminated"
        return None

    def report(self) -> dict[str, Any]:
        """The reports as JSON values, by reason."""
        found = {"near_duplicate": self.near, "contaminated": self.contaminated}
        return {name: asdict(part[1]) for name, part in found.items() if part is not None}


def find_overlaps(
    config: CleanConfig, documents: Documents, is_held_out: Callable[[bytes], bool], directory: Path
) -> Overlaps:
    """Near duplicates first, among all splits; then the training documents that share text with what is held out.

    Args:
        config: says which of the two are wanted; neither reads anything otherwise.
        documents: all documents; called once for near duplicates and twice for decontamination.
        is_held_out: whether the document of a hash is in a split other than train.
        directory: an existing directory for the work files and the results.

    Raises DataError if a decontamination file cannot be read, OSError if the disk is full.
    """
    near = None
    if config.near_dedup is not None:
        settings = config.near_dedup
        near = near_duplicates(documents(), directory, threshold=settings.threshold, permutations=settings.permutations)
    if config.decontaminate is None:
        return Overlaps(near)
    n, files = config.decontaminate.ngram, config.decontaminate.files
    kept = Overlaps(near)

    def part(held_out: bool) -> Iterator[tuple[bytes, str]]:
        for hash_, text in documents():
            if is_held_out(hash_) == held_out and kept.reason(hash_) is None:
                yield hash_, text

    def held_out_texts() -> Iterator[str]:
        yield from (text for _, text in part(True))
        yield from texts_of(files, directory)

    return Overlaps(near, contaminated(part(False), held_out_ngrams(held_out_texts(), n), directory, n=n))


def texts_of(files: Iterable[str], scratch: Path) -> Iterator[str]:
    """The normalised texts of the files to decontaminate against; remote ones are copied to `scratch`.

    Raises DataError if one cannot be read.
    """
    for spec in sorted(set(files)):
        yield from (normalise(document.text) for document in read_documents(spec, scratch))
