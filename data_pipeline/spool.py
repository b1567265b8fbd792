"""The corpus between reading and encoding: cleaned texts on disk, from which any range of hashes can be read.

Documents arrive in the order of the sources and leave in the order of their hash. That one detour shuffles the
corpus, brings exact duplicates together and makes the result independent of how the sources are cut into parts. A part
is written in runs that are sorted by hash, so that a range of hashes is one contiguous read a run; memory is one run
while writing, and one range while reading.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import IO

import numpy as np

from data_pipeline.build_plan import Part, Plan, finished_directory, read_part
from data_pipeline.clean import Cleaner, CleaningReport
from data_pipeline.config import BuildConfig
from data_pipeline.split import SplitName, document_hash, split_of

STAGE = "spool"
#: Bytes of text that are sorted and written at once.
_RUN = 64 * 1024 * 1024
#: The hash as two numbers that sort like its bytes; where the text lies in the part's file.
_ENTRIES = np.dtype([("high", "<u8"), ("low", "<u8"), ("source", "<u2"), ("offset", "<u8"), ("length", "<u4")])
#: Ranges of hashes are ranges of this many equal slices.
SLICES = 1 << 16


@dataclass(frozen=True)
class Record:
    """A kept document: its hash, the row of its source, its text in UTF-8, and whether its like has come before."""

    hash: bytes
    source: int
    data: bytes
    duplicate: bool


def cleaner_of(config: BuildConfig) -> Cleaner:
    """The cleaner that the settings ask for."""
    return Cleaner.of(config.clean, config.min_characters)


def split_name(hash_: bytes, config: BuildConfig) -> SplitName:
    """The split of a document of this hash under the settings."""
    return split_of(hash_, config.validation_fraction, config.test_fraction, config.salt)


def spool_part(plan: Plan, part: Part) -> tuple[int, int]:
    """Read, clean and hash one part and leave its texts; gives the documents and bytes read.

    Raises DataError for a bad source, OSError for the disk.
    """
    cleaner = cleaner_of(plan.config)
    report = cleaner.report
    documents: Counter[SplitName] = Counter()
    bytes_: Counter[SplitName] = Counter()
    with finished_directory(plan.result(STAGE, part.number)) as directory:
        with (directory / "texts").open("wb") as file:
            writer = _RunWriter(file, part.source)
            # Copies of remote files lie beside the texts: on the disk that has room, and removed with a killed task.
            for document in read_part(part, directory):
                if document.rejected is not None:
                    cleaner.refuse(document)
                    continue
                text = cleaner.clean(document.text)
                if text is not None:
                    hash_, data = document_hash(text), text.encode("utf-8")
                    split = split_name(hash_, plan.config)
                    documents[split] += 1
                    bytes_[split] += len(data)
                    writer.add(hash_, data)
            np.save(directory / "entries.npy", writer.finish(), allow_pickle=False)
        record = {"report": asdict(report), "documents": documents, "bytes": bytes_}
        (directory / "record.json").write_text(json.dumps(record), encoding="utf-8")
    return report.documents_read, report.bytes_read


class _RunWriter:
    """Appends texts (at most 4 GiB each) to a file in runs that are sorted by hash."""

    def __init__(self, file: IO[bytes], source: int) -> None:
        self._file, self._source = file, source
        self._run: list[tuple[bytes, bytes]] = []
        self._run_bytes = self._offset = 0
        self._entries: list[np.ndarray] = []

    def add(self, hash_: bytes, data: bytes) -> None:
        """One text."""
        self._run.append((hash_, data))
        self._run_bytes += len(data)
        if self._run_bytes >= _RUN:
            self._write_run()

    def finish(self) -> np.ndarray:
        """Write what is left; gives the table of all texts, sorted by hash."""
        self._write_run()
        entries = np.concatenate([np.zeros(0, _ENTRIES), *self._entries])
        return entries[np.lexsort((entries["offset"], entries["low"], entries["high"]))]

    def _write_run(self) -> None:
        self._run.sort()
        entries = np.zeros(len(self._run), _ENTRIES)
        for row, (hash_, data) in enumerate(self._run):
            high, low = int.from_bytes(hash_[:8], "big"), int.from_bytes(hash_[8:], "big")
            entries[row] = (high, low, self._source, self._offset, len(data))
            self._file.write(data)
            self._offset += len(data)
        self._entries.append(entries)
        self._run, self._run_bytes = [], 0


@dataclass(frozen=True)
class SpoolTotals:
    """What all parts hold: a cleaning report a source, and documents and bytes a split, duplicates included."""

    reports: tuple[CleaningReport, ...]
    documents: Counter[SplitName]
    bytes: Counter[SplitName]


def spool_totals(plan: Plan) -> SpoolTotals:
    """Sums the records of all parts, which must be finished. Raises OSError."""
    reports = tuple(cleaner_of(plan.config).report for _ in plan.config.canonical_sources())
    documents: Counter[SplitName] = Counter()
    bytes_: Counter[SplitName] = Counter()
    for part in plan.parts:
        record = json.loads((plan.result(STAGE, part.number) / "record.json").read_text(encoding="utf-8"))
        documents.update(record["documents"])
        bytes_.update(record["bytes"])
        reports[part.source].merge(CleaningReport(**record["report"]))
    return SpoolTotals(reports, documents, bytes_)


def read_range(plan: Plan, first: int, end: int) -> Iterator[Record]:
    """The documents whose hash lies in the slices [first, end) of :data:`SLICES`, by hash.

    Of equal texts the one of the first source in sorted order counts as the original, whatever came first.
    Raises OSError.
    """
    found: list[tuple[bytes, int, bytes]] = []
    for part in plan.parts:
        directory = plan.result(STAGE, part.number)
        entries = np.load(directory / "entries.npy", mmap_mode="r", allow_pickle=False)
        begin = int(np.searchsorted(entries["high"], np.uint64(first << 48)))
        stop = int(np.searchsorted(entries["high"], np.uint64(end << 48))) if end < SLICES else len(entries)
        rows = entries[begin:stop]
        with (directory / "texts").open("rb") as file:
            for row in rows[np.argsort(rows["offset"], kind="stable")]:
                file.seek(int(row["offset"]))
                hash_ = int(row["high"]).to_bytes(8, "big") + int(row["low"]).to_bytes(8, "big")
                found.append((hash_, int(row["source"]), file.read(int(row["length"]))))
    found.sort()
    previous = b""
    for hash_, source, data in found:
        yield Record(hash_, source, data, hash_ == previous)
        previous = hash_


def drop_texts(plan: Plan) -> None:
    """Free the disk once everything is encoded; the records stay. Safe to call again."""
    for part in plan.parts:
        for name in ("texts", "entries.npy"):
            (plan.result(STAGE, part.number) / name).unlink(missing_ok=True)


def distinct(plan: Plan, number: int, ranges: int) -> Iterator[tuple[bytes, str]]:
    """Hash and text of every document of a range but exact duplicates, by hash."""
    for record in read_range(plan, *range_slices(number, ranges)):
        if not record.duplicate:
            yield record.hash, record.data.decode("utf-8")


def sample(plan: Plan, ranges: int, limit: int, drop: Callable[[bytes], str | None]) -> Iterator[str]:
    """Training texts in hash order, without duplicates and those that `drop` gives a reason for, until `limit` bytes
    are reached: a random sample."""
    used = 0
    for number in range(ranges):
        for record in read_range(plan, *range_slices(number, ranges)):
            if record.duplicate or split_name(record.hash, plan.config) != "train" or drop(record.hash):
                continue
            yield record.data.decode("utf-8")
            used += len(record.data)
            if used >= limit:
                return


def range_count(plan: Plan, totals: SpoolTotals) -> int:
    """How many ranges of hashes to encode by: of about ``part_bytes``, but enough to keep 16 processes busy."""
    total = sum(totals.bytes.values())
    return max(1, min(SLICES, max(total // plan.config.part_bytes, min(16, total // 1_000_000))))


def range_slices(number: int, ranges: int) -> tuple[int, int]:
    """The slices [first, end) of a range."""
    return SLICES * number // ranges, SLICES * (number + 1) // ranges
