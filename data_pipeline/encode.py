"""From spooled texts to tokens: one range of hashes at a time, without duplicates, each split in a file of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np

from data_pipeline.build_plan import Plan, finished_directory
from data_pipeline.clean import CleaningReport
from data_pipeline.compare import overlaps_of
from data_pipeline.errors import DataError
from data_pipeline.progress import Advance
from data_pipeline.split import SPLITS, SplitName
from data_pipeline.spool import Record, range_slices, read_range, sample, split_name
from data_pipeline.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

STAGE = "encoded"
#: One row a document: its hash, its tokens with the separator, and bytes and words of its text.
ROWS = np.dtype([("hash", "u1", (16,)), ("tokens", "<u4"), ("bytes", "<u4"), ("words", "<u4")])


def tokenizer_directory(plan: Plan) -> Path:
    """Where the build keeps its tokenizer."""
    return plan.result("tokenizer", "model")


def make_tokenizer(plan: Plan, ranges: int, advance: Advance) -> None:
    """Train the tokenizer on the sample, or copy the one that the settings name. Raises DataError."""
    settings = plan.config.tokenizer
    target = tokenizer_directory(plan)
    if target.exists():
        return
    with finished_directory(target) as directory:
        if settings.model is not None:
            tokenizer = load_tokenizer(settings.model)
            tokenizer.save(directory / tokenizer.file_name)
        else:
            texts = _counted(sample(plan, ranges, settings.sample_bytes, overlaps_of(plan).reason), advance)
            trained = train_tokenizer(texts, settings, directory / "unnamed")
            (directory / "unnamed").rename(directory / trained.file_name)


def _counted(texts: Iterator[str], advance: Advance) -> Iterator[str]:
    for text in texts:
        advance(1, len(text))
        yield text


def tokenizer_of(plan: Plan) -> Tokenizer:
    """The build's tokenizer, loaded once a process so that its memo stays warm. Raises DataError."""
    path = next(tokenizer_directory(plan).iterdir())
    return _load(str(path), path.stat().st_ino, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _load(path: str, inode: int, changed: int) -> Tokenizer:
    """The model at `path`; the other two tell it from the one of an earlier build at the same place."""
    return load_tokenizer(path)


def encode_range(plan: Plan, number: int, ranges: int) -> tuple[int, int]:
    """Encode one of `ranges` ranges of hashes and leave its tokens; gives the documents and bytes of text.

    Raises DataError for a tokenizer that loses text, OSError for the disk.
    """
    tokenizer = tokenizer_of(plan)
    reports = [CleaningReport() for _ in plan.config.canonical_sources()]
    overlaps = overlaps_of(plan)
    documents = bytes_ = 0
    with finished_directory(plan.result(STAGE, number)) as directory:
        with ExitStack() as stack:
            files: dict[SplitName, _SplitFiles] = {
                split: stack.enter_context(_SplitFiles(directory, split)) for split in SPLITS
            }
            for record in read_range(plan, *range_slices(number, ranges)):
                documents += 1
                bytes_ += len(record.data)
                report = reports[record.source]
                if record.duplicate:
                    report.duplicates += 1
                    continue
                if reason := overlaps.reason(record.hash):
                    report.reject(reason, record.data.decode("utf-8"), len(record.data))
                    continue
                report.documents_kept += 1
                report.bytes_kept += len(record.data)
                ids = encode_exactly(tokenizer, record.data)
                files[split_name(record.hash, plan.config)].add(record, tokenizer.bos_id, ids)
        (directory / "record.json").write_text(json.dumps([asdict(report) for report in reports]), encoding="utf-8")
    return documents, bytes_


def check_encoded(plan: Plan, ranges: int, splits: list[SplitName]) -> None:
    """Raises DataError if deduplication and decontamination left one of `splits` empty."""
    for split in splits:
        if not any((plan.result(STAGE, number) / f"{split}.rows").stat().st_size for number in range(ranges)):
            raise DataError(
                f"near_dedup and decontaminate left no document in the {split} split: switch them off for so small a "
                f"corpus, or set {split}_fraction higher."
                if split != "train"
                else "near_dedup and decontaminate left no document in the train split: switch them off, or lower "
                "validation_fraction and test_fraction."
            )


def encode_exactly(tokenizer: Tokenizer, data: bytes) -> np.ndarray:
    """The ids of a text in UTF-8, decoded again and compared. Raises DataError if they differ."""
    text = data.decode("utf-8")
    ids = tokenizer.encode_array(text)
    if tokenizer.decode_bytes(ids.tolist()) != data:
        raise DataError(
            f"the tokenizer does not give back the document that begins with {text[:60]!r}: use a model without "
            "normalisation, or let the build train one."
        )
    return ids


class _SplitFiles:
    """Tokens and rows of one split in one range, closed by the end of a ``with`` block."""

    def __init__(self, directory: Path, split: SplitName) -> None:
        self._tokens: IO[bytes] = (directory / f"{split}.tokens").open("wb")
        self._rows: IO[bytes] = (directory / f"{split}.rows").open("wb")

    def add(self, record: Record, separator: int, ids: np.ndarray) -> None:
        """One document."""
        self._tokens.write(np.array([separator], dtype=ids.dtype).tobytes())
        self._tokens.write(ids.tobytes())
        row = np.zeros(1, ROWS)
        row["hash"] = np.frombuffer(record.hash, dtype=np.uint8)
        row["tokens"], row["bytes"] = len(ids) + 1, len(record.data)
        row["words"] = len(record.data.decode("utf-8").split())
        self._rows.write(row.tobytes())

    def __enter__(self) -> _SplitFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._tokens.close()
        self._rows.close()
