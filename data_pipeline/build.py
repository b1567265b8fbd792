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
import shutil
from pathlib import Path

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
from data_pipeline.build_pool import Pool
from data_pipeline.build_stages import Stages
from data_pipeline.config import BuildConfig
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError, Interrupted
from data_pipeline.progress import BuildProgress
from data_pipeline.schema import BUILD_FILE


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
        check_finished(config.output, fingerprint)
        return Dataset.open(config.output)
    plan = make_plan(config, fingerprint)
    shown = BuildProgress(progress)
    try:
        with locked(plan.directory, "alone"):
            begin(plan, shown, anew=not finish)
            with Pool(plan, workers) as pool:
                _run(Stages(plan, shown, pool), fingerprint, finish)
    except OSError as error:
        raise explain(error, config.output) from error
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
        check_finished(config.output, fingerprint)
        return True
    plan = make_plan(config, fingerprint)
    try:
        with locked(plan.directory, "shared"):
            shown = BuildProgress(progress)
            begin(plan, shown, anew=False)
            with Pool(plan, workers) as pool:
                return Stages(plan, shown, pool).share(part - 1, parts)
    except OSError as error:
        raise explain(error, config.output) from error


def prepare(config: BuildConfig, progress: bool = True) -> str | None:
    """Plan a build that others will do (:mod:`data_pipeline.build_array`), and leave the plan in the work directory.

    What is there of the same build stays, and is gone on from. Returns the fingerprint; None if all is built already.

    Raises:
        DataError: like :func:`build`.
    """
    fingerprint = fingerprint_of(config)
    if config.output.exists() and (not config.output.is_dir() or any(config.output.iterdir())):
        check_finished(config.output, fingerprint)
        return None
    plan = make_plan(config, fingerprint)
    try:
        with locked(plan.directory, "alone", where_possible=True):
            begin(plan, BuildProgress(progress), anew=True)
    except OSError as error:
        raise explain(error, config.output) from error
    return fingerprint


def check_finished(output: Path, fingerprint: str) -> None:
    """Raises DataError unless `output` is the dataset of this fingerprint; tidies up what a kill has left beside it."""
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
        with locked(leftover, "alone", where_possible=True):
            shutil.rmtree(leftover)


def begin(plan: Plan, progress: BuildProgress, anew: bool) -> None:
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


def _run(work: Stages, fingerprint: str, finish: bool) -> None:
    """All stages, and the rename; a failure that would repeat itself removes the work. Raises DataError, OSError."""
    directory = work.plan.directory
    try:
        work.all_stages(fingerprint, finish)
    except Interrupted:
        raise
    except DataError:
        if not finish:
            shutil.rmtree(directory, ignore_errors=True)
        raise
    shutil.rmtree(directory, ignore_errors=True)


def explain(error: OSError, output: Path) -> DataError:
    """An error of the disk as a sentence."""
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
