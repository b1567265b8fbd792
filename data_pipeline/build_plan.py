"""The plan of a build: its work directory, the parts that are read, and what has been finished.

Everything a build does is cut into tasks, each with one directory as its result, which appears by a rename: a task
either is finished or never happened. Whoever is killed, and whenever, the next process only does what is missing, and
since no result depends on who made it or when, the dataset is the same to the byte.

    .NAME.building/
      plan.json             fingerprint, settings and parts
      spool/00000/          texts of one part, cleaned and hashed (spool.py)
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
from data_pipeline.sources import NAMED_SOURCES, describe_source, read_documents
from data_pipeline.tokenizer import load_tokenizer

#: Raised whenever the same sources and settings would give other tokens, so that old outputs count as out of date.
PROCESSING_VERSION = 2
PLAN_FILE = "plan.json"
_LOCK = "building.lock"


@dataclass(frozen=True)
class Part:
    """What one task reads: files of one source, or (no paths) the whole source. `source` is its row in the sources."""

    number: int
    source: int
    spec: str
    paths: tuple[str, ...]


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


def plan_parts(config: BuildConfig) -> tuple[Part, ...]:
    """Cuts the sources into parts: runs of files of about ``part_bytes``, or whole sources where files do not tell.

    A source that is capped by ``max_source_bytes`` is one part, since where the cap falls depends on all before it.
    Raises DataError for a source that matches nothing.
    """
    parts: list[Part] = []
    for source, spec in enumerate(config.canonical_sources()):
        facts = describe_source(spec)
        if spec in NAMED_SOURCES or config.max_source_bytes is not None:
            parts.append(Part(len(parts), source, spec, ()))
            continue
        group: list[str] = []
        size = 0
        for path, file_bytes, *_ in facts:
            group.append(str(path))
            size += int(file_bytes)
            if size >= config.part_bytes:
                parts.append(Part(len(parts), source, spec, tuple(group)))
                group, size = [], 0
        if group:
            parts.append(Part(len(parts), source, spec, tuple(group)))
    return tuple(parts)


def read_part(part: Part) -> Iterator[Document]:
    """The documents of a part, in the source's order. Raises DataError like :func:`read_documents`."""
    if not part.paths:
        return read_documents(part.spec)
    return (document for path in part.paths for document in read_documents(path))


def settings_of(config: BuildConfig) -> dict[str, Any]:
    """What of the settings decides the content of the dataset, as JSON."""
    settings = config.model_dump(mode="json", exclude={"output", "part_bytes"})
    settings["sources"] = list(config.canonical_sources())
    return settings


def fingerprint_of(config: BuildConfig) -> str:
    """Hash of the settings and of what identifies the inputs' present content, cheap to compute.

    Raises DataError for a source or tokenizer that cannot be found.
    """
    model = config.tokenizer.model
    inputs = {
        "processing": [FORMAT_VERSION, PROCESSING_VERSION, sentencepiece.__version__],
        "config": settings_of(config),
        "sources": [describe_source(spec) for spec in config.canonical_sources()],
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
        "parts": [[part.source, part.spec, list(part.paths)] for part in plan.parts],
    }
    write_atomically(plan.directory / PLAN_FILE, json.dumps(tree))


def read_plan(directory: Path) -> Plan:
    """The plan that a work directory was made for. Raises OSError, or DataError if it cannot be understood."""
    try:
        tree = json.loads((directory / PLAN_FILE).read_text(encoding="utf-8"))
        config = BuildConfig.model_validate(tree["config"])
        parts = tuple(Part(i, s, spec, tuple(paths)) for i, (s, spec, paths) in enumerate(tree["parts"]))
        return Plan(directory, str(tree["fingerprint"]), config, parts)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{directory} is no work directory of this version ({error}): remove it.") from error


def recorded_plan(directory: Path) -> str | None:
    """Fingerprint of the plan in a work directory, or None if there is none that can be read."""
    try:
        return read_plan(directory).fingerprint
    except (OSError, DataError):
        return None


@contextmanager
def locked(directory: Path, mode: Literal["alone", "shared"]) -> Iterator[None]:
    """Hold the work directory (made if missing) against builds that need it alone; freed when the process dies.

    Raises DataError if another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / _LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_EX if mode == "alone" else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{directory} is in use by another build of the same output: wait for it, or stop it first."
            ) from None
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
