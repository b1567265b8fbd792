"""Builds a dataset: text in, tokenizer and shards out, in three passes of bounded memory.

1. Read, normalise, apply the rules, hash, and spool the kept documents into buckets by hash.
2. Train the tokenizer on the first training documents in hash order, which are a random sample of the corpus.
3. Go through the buckets in order: drop exact duplicates, encode, and append each document to its split.

The result is a function of the set of documents and the settings: not of the order of sources, of time, or of the
machine.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sentencepiece

from data_pipeline.buckets import BUCKETS, Buckets, Record
from data_pipeline.clean import Cleaner, CleaningReport, utf8_length
from data_pipeline.config import BuildConfig
from data_pipeline.dataset import Dataset
from data_pipeline.documents import Document
from data_pipeline.errors import DataError
from data_pipeline.overlaps import Overlaps, find_overlaps
from data_pipeline.progress import Advance, BuildProgress
from data_pipeline.schema import (
    BUILD_FILE,
    FORMAT_VERSION,
    INDEX_FILE,
    TOKENIZER_FILE,
    Index,
    SplitInfo,
    TokenizerInfo,
    canonical_hash,
    content_hash,
    token_dtype,
)
from data_pipeline.shards import SplitWriter
from data_pipeline.sources import describe_source, read_documents
from data_pipeline.split import SPLITS, SplitName, document_hash, split_of
from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from data_pipeline.workspace import workspace

#: Raised whenever the same sources and settings would give other tokens, so that old outputs count as out of date.
PROCESSING_VERSION = 1
#: A bit above 512, the wanted number of blocks: whole documents make blocks larger than their target.
_WANTED_BLOCKS = 640
_SMALLEST_BLOCK, _LARGEST_BLOCK = 1024, 65_536
#: Bytes of text on which tokens a byte are measured, to choose the block size.
_RATIO_SAMPLE = 1_000_000


def build(config: BuildConfig, progress: bool = True) -> Dataset:
    """Build the dataset that `config` describes and open it; if it is there already, only open it.

    Args:
        config: the settings.
        progress: show progress bars on standard error.

    Raises:
        DataError: the output exists with other content, a source or the tokenizer is unusable, a split would be
            empty, or the disk is full. Nothing is left at the output then.
    """
    fingerprint = _fingerprint(config)
    if config.output.exists() and (not config.output.is_dir() or any(config.output.iterdir())):
        if _recorded_fingerprint(config.output) != fingerprint:
            raise DataError(
                f"{config.output} exists and was not built from these sources with these settings: remove it or choose "
                "another output."
            )
        return Dataset.open(config.output)
    with workspace(config.output) as directory:
        _Build(config, directory, BuildProgress(progress)).run(fingerprint)
    return Dataset.open(config.output)


def _fingerprint(config: BuildConfig) -> str:
    """Hash of the settings and of what identifies the inputs' present content, cheap to compute."""
    model = config.tokenizer.model
    inputs = {
        "processing": [FORMAT_VERSION, PROCESSING_VERSION, sentencepiece.__version__],
        "config": _settings(config),
        "sources": [describe_source(spec) for spec in config.canonical_sources()],
        "tokenizer": Tokenizer.load(model).hash if model is not None else None,
    }
    return canonical_hash(inputs)


def _settings(config: BuildConfig) -> dict[str, Any]:
    settings = config.model_dump(mode="json", exclude={"output"})
    settings["sources"] = list(config.canonical_sources())
    return settings


def _recorded_fingerprint(output: Path) -> str | None:
    try:
        recorded = json.loads((output / BUILD_FILE).read_text(encoding="utf-8"))
        return str(recorded["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


class _Build:
    """The passes of one build, over one temporary directory."""

    def __init__(self, config: BuildConfig, directory: Path, progress: BuildProgress) -> None:
        self.config, self.directory, self.progress = config, directory, progress
        self.sources = config.canonical_sources()
        self.reports: list[CleaningReport] = []
        self.overlaps = Overlaps()
        self.spooled_documents: Counter[SplitName] = Counter()
        self.spooled_bytes: Counter[SplitName] = Counter()
        self.written_documents: Counter[SplitName] = Counter()

    def run(self, fingerprint: str) -> None:
        """All passes; the directory is complete afterwards. Raises DataError, or OSError for the disk."""
        spool = self.directory / "buckets"
        buckets = Buckets(spool)
        try:
            self._read(buckets)
        finally:
            buckets.finish()
        self._check_splits()
        self.overlaps = find_overlaps(
            self.config.clean, lambda: self._distinct(buckets), lambda hash_: self._split_of(hash_) != "train", spool
        )
        tokenizer = self._tokenizer(buckets)
        block_tokens = self.config.block_tokens or self._choose_block_tokens(buckets, tokenizer)
        splits = self._write(buckets, tokenizer, block_tokens)
        shutil.rmtree(spool)
        self._write_index(splits, tokenizer, block_tokens)
        text = json.dumps({"fingerprint": fingerprint}) + "\n"
        (self.directory / BUILD_FILE).write_text(text, encoding="utf-8")

    # --- pass 1 -----------------------------------------------------------------------------------------

    def _read(self, buckets: Buckets) -> None:
        for number, spec in enumerate(self.sources):
            cleaner = Cleaner.of(self.config.clean, self.config.min_characters)
            self.reports.append(cleaner.report)
            with self.progress.phase(f"read {Path(spec).name[:16]}") as advance:
                for document in self._capped(read_documents(spec), cleaner.report):
                    advance(1, utf8_length(document.text))
                    text = cleaner.clean(document.text)
                    if text is not None:
                        self._spool(buckets, number, text)

    def _capped(self, documents: Iterator[Document], report: CleaningReport) -> Iterator[Document]:
        """The documents up to the source's byte limit: whole documents, and none after the first that does not fit."""
        limit = self.config.max_source_bytes
        for document in documents:
            if limit is not None and report.bytes_read + utf8_length(document.text) > limit:
                return
            yield document

    def _spool(self, buckets: Buckets, source: int, text: str) -> None:
        record = Record(document_hash(text), source, text.encode("utf-8"))
        split = self._split_of(record.hash)
        self.spooled_documents[split] += 1
        self.spooled_bytes[split] += len(record.data)
        buckets.add(record)

    def _split_of(self, hash_: bytes) -> SplitName:
        config = self.config
        return split_of(hash_, config.validation_fraction, config.test_fraction, config.salt)

    def _wanted_splits(self) -> list[SplitName]:
        shares = {"validation": self.config.validation_fraction, "test": self.config.test_fraction}
        return [split for split in SPLITS if shares.get(split, 1.0) > 0.0]

    def _check_splits(self) -> None:
        documents = sum(self.spooled_documents.values())
        if documents == 0:
            read = sum(report.documents_read for report in self.reports)
            rejected = sum((Counter(report.rejected) for report in self.reports), Counter())
            reasons = ", ".join(f"{rule} {count}" for rule, count in rejected.items()) or "none rejected"
            raise DataError(
                f"no document is left of the {read} read from {', '.join(self.sources)} ({reasons}): check the "
                f"sources, or lower min_characters ({self.config.min_characters}) or raise max_source_bytes."
            )
        for split in self._wanted_splits():
            if self.spooled_documents[split] == 0:
                raise DataError(
                    f"the {split} split got none of the {documents} documents: add text, or set {split}_fraction "
                    "higher or to 0 to leave it out."
                    if split != "train"
                    else f"train got none of the {documents} documents: lower validation_fraction and test_fraction."
                )

    @staticmethod
    def _distinct(buckets: Buckets) -> Iterator[tuple[bytes, str]]:
        for number in range(BUCKETS):
            for record, duplicate in buckets.read(number):
                if not duplicate:
                    yield record.hash, record.data.decode("utf-8")

    # --- pass 2 -----------------------------------------------------------------------------------------

    def _sample(self, buckets: Buckets, limit: int) -> Iterator[str]:
        """Training texts in hash order, without duplicates, until `limit` bytes are reached."""
        used = 0
        for number in range(BUCKETS):
            for record, duplicate in buckets.read(number):
                if duplicate or self._split_of(record.hash) != "train" or self.overlaps.reason(record.hash):
                    continue
                yield record.data.decode("utf-8")
                used += len(record.data)
                if used >= limit:
                    return

    def _tokenizer(self, buckets: Buckets) -> Tokenizer:
        settings = self.config.tokenizer
        path = self.directory / TOKENIZER_FILE
        if settings.model is not None:
            shutil.copyfile(settings.model, path)
            return Tokenizer.load(path)
        total = min(settings.sample_bytes, self.spooled_bytes["train"])
        with self.progress.phase("train tokenizer", total) as advance:
            return train_tokenizer(_counted(self._sample(buckets, settings.sample_bytes), advance), settings, path)

    def _choose_block_tokens(self, buckets: Buckets, tokenizer: Tokenizer) -> int:
        tokens = sample_bytes = 0
        for text in self._sample(buckets, _RATIO_SAMPLE):
            tokens += len(tokenizer.encode(text)) + 1
            sample_bytes += utf8_length(text)
        expected = self.spooled_bytes["train"] * tokens / sample_bytes
        return max(_SMALLEST_BLOCK, min(_LARGEST_BLOCK, int(expected / _WANTED_BLOCKS)))

    # --- pass 3 -----------------------------------------------------------------------------------------

    def _write(self, buckets: Buckets, tokenizer: Tokenizer, block_tokens: int) -> dict[SplitName, SplitInfo]:
        (self.directory / "index").mkdir()
        dtype = token_dtype(tokenizer.vocab_size)
        writers = {
            split: SplitWriter(
                self.directory,
                split,
                dtype=dtype,
                bos_id=tokenizer.bos_id,
                block_tokens=block_tokens,
                shard_bytes=self.config.shard_bytes,
            )
            for split in self._wanted_splits()
        }
        try:
            with self.progress.phase("encode and write", sum(self.spooled_bytes.values())) as advance:
                for number in range(BUCKETS):
                    for record, duplicate in buckets.read(number):
                        self._write_document(writers, tokenizer, record, duplicate)
                        advance(1, len(record.data))
                    buckets.remove(number)
            self._check_written()
            return {split: writer.close() for split, writer in writers.items()}
        except BaseException:
            for writer in writers.values():
                writer.discard()
            raise

    def _check_written(self) -> None:
        for split in self._wanted_splits():
            if self.written_documents[split] == 0:
                raise DataError(
                    f"near_dedup and decontaminate left no document in the {split} split: switch them off for so small "
                    f"a corpus, or set {split}_fraction higher."
                )

    def _write_document(
        self, writers: dict[SplitName, SplitWriter], tokenizer: Tokenizer, record: Record, duplicate: bool
    ) -> None:
        report = self.reports[record.source]
        if duplicate:
            report.duplicates += 1
            return
        text = record.data.decode("utf-8")
        if reason := self.overlaps.reason(record.hash):
            report.reject(reason, text, len(record.data))
            return
        ids = tokenizer.encode(text)
        if tokenizer.decode_bytes(ids) != record.data:
            raise DataError(
                f"the tokenizer does not give back the document that begins with {text[:60]!r}: use a model without "
                "normalisation, or let the build train one."
            )
        report.documents_kept += 1
        report.bytes_kept += len(record.data)
        split = self._split_of(record.hash)
        self.written_documents[split] += 1
        writers[split].add(record.hash, ids, len(record.data), len(text.split()))

    def _write_index(self, splits: dict[SplitName, SplitInfo], tokenizer: Tokenizer, block_tokens: int) -> None:
        info = TokenizerInfo(
            file=TOKENIZER_FILE,
            sha256=tokenizer.hash,
            vocab_size=tokenizer.vocab_size,
            bos_id=tokenizer.bos_id,
            kind=tokenizer.kind,
        )
        dtype = token_dtype(tokenizer.vocab_size)
        report = _summed(self.reports) | {
            "overlaps": self.overlaps.report(),
            "sources": {spec: asdict(part) for spec, part in zip(self.sources, self.reports, strict=True)},
        }
        index = Index(
            hash=content_hash(dtype, info, splits),
            dtype=dtype,
            block_tokens=block_tokens,
            tokenizer=info,
            splits=splits,
            report=report,
            config=_settings(self.config),
        )
        (self.directory / INDEX_FILE).write_text(index.to_json(), encoding="utf-8")


def _counted(texts: Iterator[str], advance: Advance) -> Iterator[str]:
    for text in texts:
        advance(1, utf8_length(text))
        yield text


def _summed(reports: list[CleaningReport]) -> dict[str, Any]:
    total = CleaningReport()
    for report in reports:
        total.merge(report)
    return asdict(total)
