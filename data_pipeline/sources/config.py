"""What a user says about one source, and the unit of work that a source is divided into."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FormatName = Literal["text", "jsonl", "parquet", "tar", "warc", "openwebtext", "wikitext"]


class SourceConfig(BaseModel):
    """One source: where its documents are, how to read them, and how much of them to take.

    Attributes:
        spec: a path or glob of local files, the URL of a file (``http://``, ``https://``), a key, glob or folder of a
            bucket (``s3://BUCKET/...``), ``hf:NAME[:CONFIG][:SPLIT]``, or a named source (``installed-docs``).
        format: what the files are; None tells it from the file name.
        text_field, id_field: of JSON Lines, Parquet, ``.json`` members and Hugging Face rows. A missing id is
            replaced by the record's place.
        max_bytes, max_documents: budget of UTF-8 text and of documents, in the source's own order: whole documents,
            and none after the first that does not fit. A source with a budget is one part.
        weight: share of the documents to take, at most 1, chosen by a hash of the text (so the same ones wherever
            and in whatever order they stand).
        max_document_bytes: a longer document, line or archive member is refused: it would not fit in memory.
        max_ratio: a compressed file that expands by more than this factor (once it has given 64 MiB) is refused as a
            decompression bomb.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: Annotated[str, Field(min_length=1)]
    format: FormatName | None = None
    text_field: Annotated[str, Field(min_length=1)] = "text"
    id_field: Annotated[str, Field(min_length=1)] = "id"
    max_bytes: Annotated[int, Field(gt=0)] | None = None
    max_documents: Annotated[int, Field(gt=0)] | None = None
    weight: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_document_bytes: Annotated[int, Field(gt=0)] = 256 * 1024 * 1024
    max_ratio: Annotated[float, Field(ge=1.0)] = 200.0

    @classmethod
    def of(cls, source: str | SourceConfig) -> SourceConfig:
        """A plain spec string as a source with the default settings; a SourceConfig as it is."""
        return cls(spec=source) if isinstance(source, str) else source

    def setting(self) -> str | dict[str, Any]:
        """The shortest JSON value that :class:`BuildConfig` takes for this source: the spec alone if all is default."""
        chosen = self.model_dump(mode="json", exclude_defaults=True)
        return self.spec if chosen == {"spec": self.spec} else chosen

    @property
    def budgeted(self) -> bool:
        """Whether the source ends before its text does."""
        return self.max_bytes is not None or self.max_documents is not None


class Part(BaseModel):
    """A piece of a source that can be read on its own, in another process or on another machine; plain JSON.

    ``[start, stop)`` counts what `unit` says: bytes of a plain file (on document boundaries), row groups of a Parquet
    file, shards of a Hugging Face data set; ``file`` is a whole file and ``source`` a whole source. `bytes` is the
    size on disk that reading it costs, or 0 where it is not known. `version` is what a remote file, or all
    those of a whole source together, must still be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: SourceConfig
    unit: Literal["bytes", "row_groups", "shards", "file", "source"]
    path: str = ""
    start: int = 0
    stop: int = 0
    bytes: int = 0
    version: str = ""
