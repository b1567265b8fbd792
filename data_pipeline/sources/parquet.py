"""Parquet: one document a row, streamed in small batches, row groups as parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.documents import Document
from data_pipeline.errors import DataError
from data_pipeline.sources.config import SourceConfig
from data_pipeline.sources.streams import File

_BATCH = 256
_FREE = 64 * 1024 * 1024


def read(source: SourceConfig, file: File, start: int = 0, stop: int | None = None) -> Iterator[Document]:
    """The rows of the row groups ``[start, stop)``; without an id column the id is ``path@ROW``.

    Raises:
        DataError: the file is damaged, has no such column, or a text is null or too long; it names file and row.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        # Buffered and unmapped: a page at a time is in memory, not a row group.
        with pyarrow.parquet.ParquetFile(file.path, buffer_size=1 << 20, pre_buffer=False) as table:
            groups = range(start, table.num_row_groups if stop is None else stop)
            columns = _columns(table, file.name, source)
            row = sum(table.metadata.row_group(group).num_rows for group in range(start))
            for group in groups:
                _check_ratio(table.metadata.row_group(group), file.name, group, columns, source)
            for batch in table.iter_batches(_BATCH, row_groups=list(groups), columns=columns, use_threads=False):
                texts = batch.column(source.text_field)
                ids = batch.column(source.id_field) if source.id_field in columns else None
                for i in range(batch.num_rows):
                    text = texts[i].as_py()
                    if not isinstance(text, str) or len(text) > source.max_document_bytes:
                        raise DataError(
                            f"{file.name}, row {row}: column {source.text_field!r} holds no text of at most "
                            f"{source.max_document_bytes} bytes: drop that row, or raise max_document_bytes."
                        )
                    identity = None if ids is None else ids[i].as_py()
                    yield Document(f"{file.name}@{row}" if identity is None else str(identity), source.spec, text)
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{file.name} is damaged or no Parquet file ({reason}): restore or download it again."
        ) from error


def plan(source: SourceConfig, path: str, target_bytes: int) -> list[tuple[int, int]]:
    """Ranges of row groups of about `target_bytes` on disk, at least one row group each."""
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(path)
        sizes = [_size(metadata.row_group(group)) for group in range(metadata.num_row_groups)]
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged or no Parquet file: restore or download it again.") from error
    found, first, size = [], 0, 0
    for group, bytes_ in enumerate(sizes):
        if group > first and size + bytes_ > target_bytes:
            found.append((first, group))
            first, size = group, 0
        size += bytes_
    return [*found, (first, len(sizes))] if sizes else []


def _size(group: Any) -> int:
    return sum(group.column(c).total_compressed_size for c in range(group.num_columns))


def _columns(file: Any, path: str, source: SourceConfig) -> list[str]:
    names = file.schema_arrow.names
    kind = str(file.schema_arrow.field(source.text_field).type) if names.count(source.text_field) == 1 else None
    if kind not in ("string", "large_string", "string_view"):
        raise DataError(
            f"{path} has no text column {source.text_field!r} (its columns: {', '.join(names)}): set text_field."
        )
    return [source.text_field, *([source.id_field] if source.id_field in names else [])]


def _check_ratio(group: Any, path: str, number: int, columns: list[str], source: SourceConfig) -> None:
    for index in range(group.num_columns):
        column = group.column(index)
        large = max(_FREE, source.max_ratio * column.total_compressed_size)
        if column.path_in_schema in columns and column.total_uncompressed_size > large:
            raise DataError(
                f"{path}, row group {number}: column {column.path_in_schema!r} expands to more than "
                f"{source.max_ratio:g} times its size, as a decompression bomb does: leave it out, or raise max_ratio."
            )


def size_of(path: str, start: int, stop: int) -> int:
    """Bytes on disk of a range of row groups of a readable file."""
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_metadata(Path(path))
    return sum(_size(metadata.row_group(group)) for group in range(start, stop))
