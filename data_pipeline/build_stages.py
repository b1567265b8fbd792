"""The stages of a build, one after the other: each does what of its tasks is not finished."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from data_pipeline.assemble import make_layout, publish, shard_tasks
from data_pipeline.build_plan import Plan, Task, wanted_splits
from data_pipeline.build_pool import Pool, result_of
from data_pipeline.compare import compare_stages, make_overlaps
from data_pipeline.encode import check_encoded, make_tokenizer
from data_pipeline.errors import DataError
from data_pipeline.progress import BuildProgress
from data_pipeline.spool import SpoolTotals, drop_texts, range_count, spool_totals


class Stages:
    """The stages of one build, as far as they are not done."""

    def __init__(self, plan: Plan, progress: BuildProgress, pool: Pool) -> None:
        self.plan, self.progress, self.pool = plan, progress, pool

    def all_stages(self, fingerprint: str, finish: bool) -> None:
        """Everything that is missing, to the dataset at its place. Raises DataError, OSError."""
        tasks = self._spool_tasks()
        if finish and tasks:
            raise DataError(
                f"{len(tasks)} of the {len(self.plan.parts)} parts of {self.plan.config.output} are not finished: run "
                "pha data build with --part I/N for the missing shares, or without --finish."
            )
        self._do("read", tasks)
        totals = spool_totals(self.plan)
        self._check_splits(totals)
        ranges = range_count(self.plan, totals)
        encode = self._encode_tasks(ranges)
        if encode:
            self._compare(totals, ranges)
            self._tokenizer(totals, ranges)
            self._do("encode", encode, sum(totals.bytes.values()))
        check_encoded(self.plan, ranges, wanted_splits(self.plan.config))
        drop_texts(self.plan)
        self._layout(ranges)
        self._do("write shards", shard_tasks(self.plan))
        self._publish(fingerprint)

    def share(self, first: int, step: int) -> bool:
        """Every `step`-th task of reading and, if all reading is done, of encoding. Raises DataError, OSError."""
        self._do("read", [task for task in self._spool_tasks() if task[1] % step == first])
        if self._spool_tasks():
            return False
        totals = spool_totals(self.plan)
        self._check_splits(totals)
        ranges = range_count(self.plan, totals)
        tasks = [task for task in self._encode_tasks(ranges) if task[1] % step == first]
        if tasks:
            self._compare(totals, ranges)
            self._tokenizer(totals, ranges)
            self._do("encode", tasks)
        return True

    def _do(self, name: str, tasks: list[Task], total: int | None = None, until: Path | None = None) -> None:
        """Do the tasks of a stage; once `until` is there, those that are left are of no use any more."""
        with self.progress.phase(name, total) as advance:
            self.pool.run(tasks, advance)

    def _spool_tasks(self) -> list[Task]:
        numbers = range(len(self.plan.parts))
        return [["spool", n] for n in numbers if not self.plan.result("spool", n).exists()]

    def _encode_tasks(self, ranges: int) -> list[Task]:
        return [["encode", n, ranges] for n in range(ranges) if not self.plan.result("encoded", n).exists()]

    def _compare(self, totals: SpoolTotals, ranges: int) -> None:
        """Find near duplicates and contaminated documents, if the settings ask for it."""
        found = result_of(self.plan, ["overlaps", ranges])
        try:
            for name, tasks in () if found.exists() else compare_stages(self.plan.config.clean, ranges):
                missing = [task for task in tasks if not result_of(self.plan, task).exists()]
                self._do(name, missing, sum(totals.bytes.values()) if len(tasks) > 1 else None, until=found)
        except OSError:
            if not found.exists():  # else: another share of the build has found all, and tidied up
                raise
        self._overlaps(ranges)

    def _overlaps(self, ranges: int) -> None:
        make_overlaps(self.plan, ranges)

    def _tokenizer(self, totals: SpoolTotals, ranges: int) -> None:
        expected = min(self.plan.config.tokenizer.sample_bytes, totals.bytes["train"])
        with self.progress.phase("train tokenizer", expected) as advance:
            make_tokenizer(self.plan, ranges, advance)

    def _layout(self, ranges: int) -> None:
        make_layout(self.plan, ranges)

    def _publish(self, fingerprint: str) -> None:
        publish(self.plan, fingerprint)

    def _check_splits(self, totals: SpoolTotals) -> None:
        config = self.plan.config
        documents = sum(totals.documents.values())
        if documents == 0:
            read = sum(report.documents_read for report in totals.reports)
            rejected = sum((Counter(report.rejected) for report in totals.reports), Counter())
            named = ", ".join(source.spec for source in config.canonical_sources())
            reasons = ", ".join(f"{rule} {count}" for rule, count in rejected.items()) or "none rejected"
            raise DataError(
                f"no document is left of the {read} read from {named} ({reasons}): "
                "check the sources and the rules of clean, "
                f"lower min_characters ({config.min_characters}) or raise max_source_bytes."
            )
        for split in wanted_splits(config):
            if totals.documents[split] == 0:
                raise DataError(
                    f"the {split} split got none of the {documents} documents: add text, or set {split}_fraction "
                    "higher or to 0 to leave it out."
                    if split != "train"
                    else f"train got none of the {documents} documents: lower validation_fraction and test_fraction."
                )
