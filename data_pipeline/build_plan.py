"""The plan of a build: its work directory, the parts that are read, and what has been finished.

Everything a build does is cut into tasks, each with one directory as its result, which appears by a rename: a task
either is finished or never happened. Whoever is killed, and whenever, the next process only does what is missing, and
since no result depends on who made it or when, the dataset is the same to the byte.

    .NAME.building/
      plan.json             fingerprint, settings and parts
      spool/00000/          texts of one part, cleaned and hashed (spool.py)
      overlaps/found/       hashes of near duplicates and contaminated documents (overlaps.py)
      tokenizer/            the model
      encoded/00000/        tokens of one range of hashes, without duplicates (encode.py)
      layout/               where blocks and shards begin and end (assemble.py)
      shards/NAME/          one shard
      dataset/              what becomes the dataset
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from data_pipeline.config import BuildConfig
from data_pipeline.documents import Document
from data_pipeline.errors import DataError
from data_pipeline.schema import FORMAT_VERSION, canonical_hash
from data_pipeline.sources import Part as SourcePart
from data_pipeline.sources import SourceConfig, describe_source
from data_pipeline.sources import plan_parts as plan_source
from data_pipeline.sources import read_part as read_piece
from data_pipeline.split import SPLITS, SplitName
from data_pipeline.tokenizer import load_tokenizer

#: Raised whenever the same sources and settings would give other tokens, so that old outputs count as out of date.
PROCESSING_VERSION = 4
PLAN_FILE = "plan.json"
#: A stage and its arguments, as JSON.
Task = list[Any]
_LOCK = "building.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Part:
    """What one task reads: consecutive pieces of one source. `source` is its row in the canonical sources."""

    number: int
    source: int
    pieces: tuple[SourcePart, ...]


@dataclass(frozen=True)
class Plan:
    """Settings and parts of a build; the same for every process that works on it."""

    directory: Path
    fingerprint: str
    config: BuildConfig
    parts: tuple[Part, ...]

    def result(self, stage: str, name: str | int) -> Path:
        """The directory that a finished task leaves."""
        return self.directory / stage / (f"{name:05d}" if isinstance(name, int) else name)


def capped_sources(config: BuildConfig) -> tuple[SourceConfig, ...]:
    """The sources as they are read: each with the smaller of its own budget and ``max_source_bytes``."""
    limit = config.max_source_bytes
    if limit is None:
        return config.canonical_sources()
    return tuple(
        source.model_copy(update={"max_bytes": limit if source.max_bytes is None else min(limit, source.max_bytes)})
        for source in config.canonical_sources()
    )


def plan_parts(config: BuildConfig) -> tuple[Part, ...]:
    """Cuts the sources into parts of about ``part_bytes``: large files are cut, small ones are read together.

    A source with a budget (its own or ``max_source_bytes``) is one part, since where the budget ends depends on all
    before it; shards, whose size is not known, are a part each. Raises DataError for a source that matches nothing.
    """
    parts: list[Part] = []
    for row, source in enumerate(capped_sources(config)):
        group: list[SourcePart] = []
        size = 0
        for piece in plan_source(source, config.part_bytes):
            group.append(piece)
            size += config.part_bytes if piece.unit == "shards" else piece.bytes
            if size >= config.part_bytes:
                parts.append(Part(len(parts), row, tuple(group)))
                group, size = [], 0
        if group:
            parts.append(Part(len(parts), row, tuple(group)))
    return tuple(parts)


def read_part(part: Part, scratch: Path) -> Iterator[Document]:
    """The documents of a part, in the source's order; remote files are copied to `scratch` while they are read.

    Raises DataError as the source does.
    """
    return (document for piece in part.pieces for document in read_piece(piece, scratch))


def wanted_splits(config: BuildConfig) -> list[SplitName]:
    """The splits that are not left out, train first."""
    shares = {"validation": config.validation_fraction, "test": config.test_fraction}
    return [split for split in SPLITS if shares.get(split, 1.0) > 0.0]


def settings_of(config: BuildConfig) -> dict[str, Any]:
    """What of the settings decides the content of the dataset, as JSON."""
    settings = config.model_dump(mode="json", exclude={"output", "part_bytes"})
    settings["sources"] = [source.setting() for source in config.canonical_sources()]
    return settings


def fingerprint_of(config: BuildConfig) -> str:
    """Hash of the settings and of what identifies the inputs' present content, cheap to compute.

    Raises DataError for a source or tokenizer that cannot be found.
    """
    model = config.tokenizer.model
    against = config.clean.decontaminate.files if config.clean.decontaminate is not None else ()
    inputs = {
        "processing": [FORMAT_VERSION, PROCESSING_VERSION, sentencepiece.__version__],
        "config": settings_of(config),
        "sources": [describe_source(source) for source in config.canonical_sources()],
        "decontaminate": [describe_source(spec) for spec in sorted(set(against))],
        "tokenizer": load_tokenizer(model).hash if model is not None else None,
    }
    return canonical_hash(inputs)


def work_directory(output: Path) -> Path:
    """Where a build of `output` works: beside it, so that the last step is a rename."""
    return output.parent / f".{output.name}.building"


def make_plan(config: BuildConfig, fingerprint: str) -> Plan:
    """The plan of a configuration, not yet written. Raises DataError for a source that matches nothing."""
    key = canonical_hash([fingerprint, config.part_bytes])
    return Plan(work_directory(config.output), key, config, plan_parts(config))


def write_plan(plan: Plan) -> None:
    """Write ``plan.json``, at once or not at all. Raises OSError."""
    tree = {
        "fingerprint": plan.fingerprint,
        "config": plan.config.model_dump(mode="json"),
        "parts": [
            [part.source, [piece.model_dump(mode="json", exclude={"source"}) for piece in part.pieces]]
            for part in plan.parts
        ],
    }
    write_atomically(plan.directory / PLAN_FILE, json.dumps(tree))


def read_plan(directory: Path) -> Plan:
    """The plan that a work directory was made for. Raises OSError, or DataError if it cannot be understood."""
    try:
        tree = json.loads((directory / PLAN_FILE).read_text(encoding="utf-8"))
        config = BuildConfig.model_validate(tree["config"])
        sources = capped_sources(config)
        parts = tuple(
            Part(number, row, tuple(SourcePart(source=sources[row], **piece) for piece in pieces))
            for number, (row, pieces) in enumerate(tree["parts"])
        )
        return Plan(directory, str(tree["fingerprint"]), config, parts)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{directory} is no work directory of this version ({error}): remove it.") from error


def recorded_plan(directory: Path) -> str | None:
    """Fingerprint of the plan in a work directory, or None if there is none that can be read."""
    try:
        return read_plan(directory).fingerprint
    except (OSError, DataError):
        return None


@contextmanager
def locked(directory: Path, mode: Literal["alone", "shared"], where_possible: bool = False) -> Iterator[None]:
    """Hold the work directory (made if missing) against builds that need it alone; freed when the process dies.

    `where_possible` goes on without the lock on a file system that has none (Lustre without ``-o flock``): for those
    who have another way to know of each other.

    Raises DataError if another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / _LOCK).open("a+b") as lock:  # NFS locks for sharing only what is open for reading
        try:
            fcntl.flock(lock, (fcntl.LOCK_EX if mode == "alone" else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{directory} is in use by another build of the same output: wait for it, or stop it first."
            ) from None
        except OSError as error:
            if not (where_possible and error.errno in _NO_LOCKS):
                raise
        yield


def clear(directory: Path) -> None:
    """Remove everything but the lock from a work directory."""
    for child in directory.iterdir():
        if child.is_dir():
            shutil.rmtree(child)
        elif child.name != _LOCK:
            child.unlink()


def remove_unfinished(directory: Path) -> None:
    """Remove what killed tasks have left; only for who holds the work directory alone."""
    for leftover in directory.glob("*/*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def finished_directory(target: Path) -> Iterator[Path]:
    """A temporary directory that becomes `target` when the block ends well; if `target` has appeared, it is kept."""
    target.parent.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{target.name}.tmp-"))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes directories private
        try:
            temporary.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file by rename. Raises OSError."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
