"""Builds a dataset: text in, tokenizer and shards out, in stages of small tasks that any process can do.

1. Read, normalise, apply the rules and hash each part of the sources (:mod:`data_pipeline.spool`).
2. If asked, find near duplicates and contaminated documents (:mod:`data_pipeline.overlaps`), in one process.
3. Train the tokenizer on the first training documents in hash order, which are a random sample of the corpus.
4. Drop duplicates and what stage 2 found, and encode, by ranges of hashes (:mod:`data_pipeline.encode`).
5. Lay out blocks and shards, write the shards (:mod:`data_pipeline.layout`) and assemble the dataset.

The result is a function of the set of documents and the settings: not of the order of sources, of time, of the number
of processes, of the machine, or of how often the build was killed on the way (:mod:`data_pipeline.build_plan`).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from pathlib import Path

from data_pipeline.assemble import assemble, make_layout, shard_tasks
from data_pipeline.build_plan import (
    PLAN_FILE,
    Plan,
    clear,
    fingerprint_of,
    locked,
    make_plan,
    read_plan,
    recorded_plan,
    remove_unfinished,
    work_directory,
    write_plan,
)
from data_pipeline.build_pool import Pool, Task
from data_pipeline.config import BuildConfig
from data_pipeline.dataset import Dataset
from data_pipeline.encode import check_encoded, make_overlaps, make_tokenizer
from data_pipeline.errors import DataError, Interrupted
from data_pipeline.progress import BuildProgress
from data_pipeline.schema import BUILD_FILE
from data_pipeline.split import SPLITS, SplitName
from data_pipeline.spool import SpoolTotals, drop_texts, range_count, spool_totals


def build(config: BuildConfig, progress: bool = True, workers: int = 1, finish: bool = False) -> Dataset:
    """Build the dataset that `config` describes and open it; if it is there already, only open it.

    A build that was killed continues from its finished tasks.

    Args:
        config: the settings.
        progress: show progress bars on standard error.
        workers: processes that read, encode and write; they change the time, not the result.
        finish: refuse to read sources: every part must have been left by :func:`build_part`.

    Raises:
        DataError: the output exists with other content or is being built, a source or the tokenizer is unusable, a
            split would be empty, a worker died, or the disk is full. Nothing is left at the output then; what was
            finished is kept beside it if a repetition can go on from there.
    """
    fingerprint = fingerprint_of(config)
    if config.output.exists() and (not config.output.is_dir() or any(config.output.iterdir())):
        _check_finished(config.output, fingerprint)
        return Dataset.open(config.output)
    plan = make_plan(config, fingerprint)
    shown = BuildProgress(progress)
    try:
        with locked(plan.directory, "alone"):
            _begin(plan, shown, anew=not finish)
            with Pool(plan, workers) as pool:
                _run(_Build(plan, shown, pool), fingerprint, finish)
    except OSError as error:
        raise _explain(error, config.output) from error
    return Dataset.open(config.output)


def build_part(config: BuildConfig, part: int, parts: int, progress: bool = True, workers: int = 1) -> bool:
    """Do every `parts`-th task of a build, beginning with the `part`-th (from 1): a job array's share of the work.

    The first round reads; a second round, once all shares of the first are done, encodes. :func:`build` with
    ``finish`` does what is left. Returns whether this call could encode.

    Raises:
        DataError: like :func:`build`; also if the work directory belongs to another configuration.
    """
    if not 1 <= part <= parts:
        raise DataError(f"part {part}/{parts} does not exist: parts are 1/{parts} to {parts}/{parts}.")
    fingerprint = fingerprint_of(config)
    if config.output.exists():
        _check_finished(config.output, fingerprint)
        return True
    plan = make_plan(config, fingerprint)
    try:
        with locked(plan.directory, "shared"):
            shown = BuildProgress(progress)
            _begin(plan, shown, anew=False)
            with Pool(plan, workers) as pool:
                return _Build(plan, shown, pool).share(part - 1, parts)
    except OSError as error:
        raise _explain(error, config.output) from error


def _check_finished(output: Path, fingerprint: str) -> None:
    try:
        recorded = json.loads((output / BUILD_FILE).read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        recorded = None
    if recorded != fingerprint:
        raise DataError(
            f"{output} exists and was not built from these sources with these settings: remove it or choose another "
            "output."
        )
    leftover = work_directory(output)
    if leftover.exists():  # killed between the last rename and the tidying up
        with locked(leftover, "alone"):
            shutil.rmtree(leftover)


def _begin(plan: Plan, progress: BuildProgress, anew: bool) -> None:
    """Make the work directory the plan's: new, continued, or (if `anew`) emptied of another configuration's work."""
    recorded = recorded_plan(plan.directory)
    if recorded is None and not anew and (plan.directory / PLAN_FILE).exists():
        read_plan(plan.directory)  # refuses what another version has left: its results are not ours
    if recorded is not None and recorded != plan.fingerprint and not anew:
        raise DataError(
            f"{plan.directory} holds the work of other settings or sources: remove it, or restore what was changed."
        )
    if recorded == plan.fingerprint:
        if anew:
            remove_unfinished(plan.directory)
        progress.say(f"continuing the build in {plan.directory}")
        return
    if recorded is not None:
        progress.say(f"settings or sources have changed since the build in {plan.directory} was stopped: starting anew")
    if anew:
        clear(plan.directory)
    write_plan(plan)


def _run(work: _Build, fingerprint: str, finish: bool) -> None:
    """All stages, and the rename; a failure that would repeat itself removes the work. Raises DataError, OSError."""
    directory, output = work.plan.directory, work.plan.config.output
    try:
        os.rename(work.all_stages(fingerprint, finish), output)  # noqa: PTH104 - the better known semantics
    except Interrupted:
        raise
    except DataError:
        if not finish:
            shutil.rmtree(directory, ignore_errors=True)
        raise
    _sync(output.parent)
    shutil.rmtree(directory, ignore_errors=True)


class _Build:
    """The stages of one build, as far as they are not done."""

    def __init__(self, plan: Plan, progress: BuildProgress, pool: Pool) -> None:
        self.plan, self.progress, self.pool = plan, progress, pool

    def all_stages(self, fingerprint: str, finish: bool) -> Path:
        """Everything that is missing; gives the directory of the finished dataset. Raises DataError, OSError."""
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
            self._tokenizer(totals, ranges)
            self._do("encode", encode, sum(totals.bytes.values()))
        check_encoded(self.plan, ranges, self._wanted_splits())
        drop_texts(self.plan)
        make_layout(self.plan, self._wanted_splits(), ranges)
        self._do("write shards", shard_tasks(self.plan))
        return assemble(self.plan, fingerprint, totals.reports, ranges)

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
            self._tokenizer(totals, ranges)
            self._do("encode", tasks)
        return True

    def _do(self, name: str, tasks: list[Task], total: int | None = None) -> None:
        with self.progress.phase(name, total) as advance:
            self.pool.run(tasks, advance)

    def _spool_tasks(self) -> list[Task]:
        numbers = range(len(self.plan.parts))
        return [["spool", n] for n in numbers if not self.plan.result("spool", n).exists()]

    def _encode_tasks(self, ranges: int) -> list[Task]:
        return [["encode", n, ranges] for n in range(ranges) if not self.plan.result("encoded", n).exists()]

    def _tokenizer(self, totals: SpoolTotals, ranges: int) -> None:
        clean = self.plan.config.clean
        if clean.near_dedup is not None or clean.decontaminate is not None:
            self.progress.say("comparing texts with each other, for near_dedup or decontaminate")
        make_overlaps(self.plan, ranges)
        expected = min(self.plan.config.tokenizer.sample_bytes, totals.bytes["train"])
        with self.progress.phase("train tokenizer", expected) as advance:
            make_tokenizer(self.plan, ranges, advance)

    def _wanted_splits(self) -> list[SplitName]:
        config = self.plan.config
        shares = {"validation": config.validation_fraction, "test": config.test_fraction}
        return [split for split in SPLITS if shares.get(split, 1.0) > 0.0]

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
        for split in self._wanted_splits():
            if totals.documents[split] == 0:
                raise DataError(
                    f"the {split} split got none of the {documents} documents: add text, or set {split}_fraction "
                    "higher or to 0 to leave it out."
                    if split != "train"
                    else f"train got none of the {documents} documents: lower validation_fraction and test_fraction."
                )


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: OSError, output: Path) -> DataError:
    work = work_directory(output)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(
            f"the disk of {output.parent} is full, so {output} was not built: a build needs about 1.6 times the bytes "
            f"of its text; free space and start again to go on from the finished parts, or remove {work}."
        )
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return DataError(f"{output} appeared while it was being built: remove it or choose another output.")
    return DataError(
        f"{output} cannot be built ({error}): check the directory and its permissions, and start again to go on from "
        f"what is finished in {work}."
    )
