"""Hugging Face data sets by name, streamed: ``hf:NAME[:CONFIG][:SPLIT]``, NAME also being a local directory.

Nothing of a data set is executed: the library (version 4 and later) has no loading scripts any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from data_pipeline.documents import Document
from data_pipeline.errors import DataError
from data_pipeline.sources.config import SourceConfig
from data_pipeline.sources.jsonl import fields

PREFIX = "hf:"


def read(source: SourceConfig, start: int = 0, stop: int | None = None) -> Iterator[Document]:
    """The rows of the split (``train`` if none is named), or of its shards ``[start, stop)``.

    Without an id column the id is ``SPEC@SHARD.ROW``.

    Raises:
        DataError: the library is not installed, the data set cannot be loaded, or a row has no text; it names the row.
    """
    rows = _load(source)
    shards = rows.num_shards
    for shard in range(start, shards if stop is None else stop):
        with _explained(source):
            # Shard by shard, also when all are read: so parts join to the whole.
            part = rows.shard(num_shards=shards, index=shard, contiguous=True) if shards > 1 else rows
            for number, row in enumerate(part):
                place = f"{source.spec}@{shard}.{number}"
                try:
                    text, identity = fields(row, source)
                except ValueError as error:
                    raise DataError(f"{place} {error}: choose another field or repair the data set.") from error
                yield Document(place if identity is None else identity, source.spec, text)


def shards(source: SourceConfig) -> int:
    """How many shards the split has. Raises DataError as :func:`read` does."""
    return int(_load(source).num_shards)


def describe(source: SourceConfig) -> list[list[Any]]:
    """Name, version and the library's hash over the data set's files, which changes with them."""
    datasets = _library()
    name, config, split = _names(source.spec)
    with _explained(source):
        builder = datasets.load_dataset_builder(name, config)
        return [[name, builder.config.name, split, str(builder.config.version), str(builder.hash)]]


def _names(spec: str) -> tuple[str, str | None, str]:
    name, *rest = spec.removeprefix(PREFIX).split(":")
    if not name or len(rest) > 2:
        raise DataError(f"source {spec!r} is not of the form hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT.")
    if len(rest) == 2:
        return name, rest[0] or None, rest[1] or "train"
    return name, None, rest[0] if rest and rest[0] else "train"


def _load(source: SourceConfig) -> Any:
    datasets = _library()
    name, config, split = _names(source.spec)
    with _explained(source):
        return datasets.load_dataset(name, config, split=split, streaming=True)


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "sources that begin with hf: need the library `datasets`: pip install 'pha-pretrain[hf]'."
        ) from error
    return datasets


@contextmanager
def _explained(source: SourceConfig) -> Iterator[None]:
    try:
        yield
    except (DataError, GeneratorExit):
        raise
    except Exception as error:  # the library and its transports raise dozens of types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"source {source.spec!r} cannot be loaded ({reason}): check name, configuration, split and connection."
        ) from error
