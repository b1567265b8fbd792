"""Adds documents to a dataset: new shards and tables beside the old ones, then a new index in one rename.

Until that rename the dataset is the old one, and afterwards no old shard has changed: a reader that has the old index
open reads on. The new documents go through the settings that the dataset was built with, so that each falls into the
split that it would have fallen into from the start.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from data_pipeline.assemble import report_of
from data_pipeline.build_plan import Plan, clear, locked, plan_parts, write_atomically
from data_pipeline.clean import SAMPLES, CleaningReport
from data_pipeline.config import BuildConfig
from data_pipeline.dataset import Dataset
from data_pipeline.encode import encode_exactly
from data_pipeline.errors import DataError
from data_pipeline.progress import BuildProgress
from data_pipeline.schema import BUILD_FILE, INDEX_FILE, SplitInfo, canonical_hash, content_hash
from data_pipeline.shards import SplitWriter, Stored
from data_pipeline.spool import range_count, range_slices, read_range, split_name, spool_part, spool_totals
from data_pipeline.tokenizer import Tokenizer


def append(path: Path | str, sources: Sequence[str], progress: bool = True) -> Dataset:
    """Add the documents of `sources` to the dataset at `path` and open it anew.

    Documents that it holds already, or that come twice, are dropped and counted. The dataset's hash changes if
    anything is added. A call that is killed leaves the old dataset; repeat it.

    Raises:
        DataError: there is no dataset, it was merged, another call is at work, or a source is unusable. OSErrors of
            the disk are told as DataErrors too; the dataset is then the old one.
    """
    path = Path(path)
    work = path.parent / f".{path.name}.appending"
    try:
        with Dataset.open(path) as dataset, locked(work, "alone"):
            try:
                clear(work)
                plan = Plan(work, "", _config(dataset, sources), ())
                plan = Plan(work, "", plan.config, plan_parts(plan.config))
                _Append(dataset, plan, BuildProgress(progress)).run()
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{path} cannot be added to ({error}); it is unchanged: check the disk.") from error
    return Dataset.open(path)


def _config(dataset: Dataset, sources: Sequence[str]) -> BuildConfig:
    settings = dict(dataset.index.config)
    if "merged" in settings:
        raise DataError(
            f"{dataset.path} was merged from datasets that may have been split differently: append to one of those "
            "and merge again."
        )
    settings |= {"sources": list(sources), "output": str(dataset.path), "max_source_bytes": None}
    clean = settings.get("clean") or {}
    if clean.get("near_dedup") or clean.get("decontaminate"):
        raise DataError(
            f"{dataset.path} was built with near_dedup or decontaminate, which compare all texts with each other: "
            "build it again with the new sources instead of appending."
        )
    try:
        return BuildConfig.model_validate(settings)
    except ValidationError as error:
        raise DataError(
            f"{dataset.path} cannot be added to: its settings are of another version ({error.errors()[0]['msg']})."
        ) from error


class _Append:
    """One call of :func:`append`."""

    def __init__(self, dataset: Dataset, plan: Plan, progress: BuildProgress) -> None:
        self.dataset, self.plan, self.progress = dataset, plan, progress
        self.tokenizer: Tokenizer = dataset.tokenizer()
        self.writers: dict[str, SplitWriter] = {}

    def run(self) -> None:
        """Read, encode, write and publish. Raises DataError, OSError."""
        with self.progress.phase("read") as advance:
            for part in self.plan.parts:
                advance(*spool_part(self.plan, part))
        totals = spool_totals(self.plan)
        ranges = range_count(self.plan, totals)
        known = self._known()
        (self.plan.directory / "dataset" / "index").mkdir(parents=True)
        try:
            with self.progress.phase("encode and write", sum(totals.bytes.values())) as advance:
                for number in range(ranges):
                    for record in read_range(self.plan, *range_slices(number, ranges)):
                        advance(1, len(record.data))
                        report = totals.reports[record.source]
                        if record.duplicate or record.hash in known:
                            report.duplicates += 1
                            continue
                        report.documents_kept += 1
                        report.bytes_kept += len(record.data)
                        ids = encode_exactly(self.tokenizer, record.data)
                        words = len(record.data.decode("utf-8").split())
                        self._writer(split_name(record.hash, self.plan.config)).add(
                            record.hash, ids, len(record.data), words
                        )
            added = {name: writer.close() for name, writer in self.writers.items()}
        except BaseException:
            for writer in self.writers.values():
                writer.discard()
            raise
        if added:
            self._publish(added, totals.reports)

    def _known(self) -> _Hashes:
        return _Hashes([self.dataset.split(name).document_table["hash"] for name in self.dataset.split_names])

    def _writer(self, split: str) -> SplitWriter:
        if split not in self.writers:
            index = self.dataset.index
            stored = None
            if split in self.dataset.split_names:
                old = self.dataset.split(split)
                stored = Stored(old.info, old.blocks, old.document_table)
            self.writers[split] = SplitWriter(
                self.plan.directory / "dataset",
                split,
                dtype=index.dtype,
                bos_id=index.tokenizer.bos_id,
                block_tokens=index.block_tokens,
                shard_bytes=self.plan.config.shard_bytes,
                stored=stored,
            )
        return self.writers[split]

    def _publish(self, added: dict[str, SplitInfo], reports: tuple[CleaningReport, ...]) -> None:
        new, path, index = self.plan.directory / "dataset", Path(self.dataset.path), self.dataset.index
        for file in [*new.glob("*.tar"), *new.glob("index/*.npy")]:
            file.replace(path / file.relative_to(new))
        splits: dict[Any, SplitInfo] = {**index.splits, **added}
        sources = self.plan.config.canonical_sources()
        specs = [source.spec for source in sources]
        config = {**index.config, "sources": _united(index.config["sources"], [s.setting() for s in sources])}
        changed = index.model_copy(
            update={
                "splits": splits,
                "hash": content_hash(index.dtype, index.tokenizer, splits),
                "report": _sum(index.report, report_of(dict(zip(specs, reports, strict=True)))),
                "config": config,
            }
        )
        write_atomically(path / INDEX_FILE, changed.to_json())
        # No build of the old sources is this dataset any more.
        fingerprint = canonical_hash(["appended", changed.hash])
        write_atomically(path / BUILD_FILE, json.dumps({"fingerprint": fingerprint}) + "\n")


class _Hashes:
    """A set of document hashes in 16 bytes each: 130 MB for OpenWebText's 8 million."""

    def __init__(self, tables: list[np.ndarray]) -> None:
        numbers = [np.ascontiguousarray(table).view(">u8").astype(np.uint64) for table in tables]
        pairs = np.concatenate(numbers)
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        self._high, self._low = pairs[order, 0].copy(), pairs[order, 1].copy()

    def __contains__(self, hash_: bytes) -> bool:
        high, low = (np.uint64(int.from_bytes(half, "big")) for half in (hash_[:8], hash_[8:]))
        first, end = (int(np.searchsorted(self._high, high, side=side)) for side in ("left", "right"))
        return bool((self._low[first:end] == low).any())


def _united(old: list[Any], new: list[Any]) -> list[Any]:
    """Two lists of source settings (specs or mappings) as one: sorted by spec, each setting once."""
    found = {json.dumps(setting, sort_keys=True): setting for setting in (*old, *new)}
    return [found[key] for key in sorted(found, key=lambda key: (_spec_of(found[key]), key))]


def _spec_of(setting: str | dict[str, Any]) -> str:
    return setting if isinstance(setting, str) else str(setting["spec"])


def _sum(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Two reports as one: numbers are added, sections are merged, samples kept up to their customary number."""
    total = dict(old)
    for key, value in new.items():
        if isinstance(value, dict):
            total[key] = _sum(total.get(key, {}), value)
        else:
            total[key] = total[key] + value if key in total else value
            if isinstance(value, list):
                total[key] = total[key][:SAMPLES]
    return total
