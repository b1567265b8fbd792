"""The format of a dataset directory: ``index.json`` as typed models, and the two binary tables beside it.

    index.json                   this file's :class:`Index`
    build.json                   fingerprint of the inputs; only tells whether a build is up to date
    tokenizer.model              SentencePiece model (GPT-2: tokenizer.json)
    train-000000.tar ...         plain USTAR; member ``000000000.bin`` is one block of whole documents
    index/train.blocks.npy       where each block lies (:data:`BLOCKS`)
    index/train.documents.npy    where each document lies in its block, and its hash (:data:`DOCUMENTS`)

Appending adds shards and writes both tables anew as ``train.000012.blocks.npy`` (the number of shards before it), so
that a reader of the old index is not disturbed.

A block is little-endian token ids without a header. Every document starts with the separator (``bos_id``), which so
also ends the document before it: the label of a document's last token is the next document's separator.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

#: Readers refuse any other.
FORMAT_VERSION: Literal[1] = 1
INDEX_FILE = "index.json"
BUILD_FILE = "build.json"
TOKENIZER_FILE = "tokenizer.model"

#: `shard` is a row of the split's shard list; `offset` and `bytes` locate the member's data in the tar file; `crc32`
#: is of those bytes; `first_document` is the block's first row in the documents table.
BLOCKS = np.dtype(
    [
        ("shard", "<u4"),
        ("offset", "<u8"),
        ("bytes", "<u8"),
        ("crc32", "<u4"),
        ("tokens", "<u8"),
        ("first_document", "<u8"),
    ]
)
#: `offset` is the separator's position in the block; `tokens` counts the separator; `hash` is the document hash.
DOCUMENTS = np.dtype([("offset", "<u4"), ("tokens", "<u4"), ("hash", "u1", (16,))])

_HASH = Field(pattern=r"^[0-9a-f]{64}$")
#: File names only: an index must not be able to point outside its directory.
_NAME = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardInfo(_Strict):
    """One tar file: its size in bytes and SHA-256, and what it holds."""

    name: str = _NAME
    bytes: int = Field(ge=0, lt=2**63)
    sha256: str = _HASH
    blocks: int = Field(ge=0)
    tokens: int = Field(ge=0)


class TableInfo(_Strict):
    """A binary table below ``index/``: file name and SHA-256 of the file."""

    name: str = _NAME
    sha256: str = _HASH


class SplitInfo(_Strict):
    """Totals of a split. `tokens` counts separators; `bytes` and `words` are of the normalised text."""

    documents: int = Field(gt=0, lt=2**48)
    tokens: int = Field(gt=0, lt=2**63)
    bytes: int
    words: int
    blocks: int = Field(gt=0, lt=2**40)
    shards: tuple[ShardInfo, ...] = Field(min_length=1)
    blocks_table: TableInfo
    documents_table: TableInfo


class TokenizerInfo(_Strict):
    """The tokenizer that wrote the ids."""

    file: str = _NAME
    sha256: str = _HASH
    vocab_size: int = Field(gt=0)
    bos_id: int = Field(ge=0)
    kind: Literal["bpe", "unigram", "gpt2"]


class Index(_Strict):
    """``index.json``. `hash` identifies the content: two datasets of the same hash hold the same tokens in the same
    order.

    `report` (documents read, rejected and kept, by source) and `config` (the build's settings) are for people; they
    do not enter the hash.
    """

    format_version: Literal[1] = FORMAT_VERSION
    hash: str = _HASH
    dtype: Literal["uint16", "uint32"]
    block_tokens: int
    tokenizer: TokenizerInfo
    splits: dict[Literal["train", "validation", "test"], SplitInfo]
    report: dict[str, Any]
    config: dict[str, Any]

    def to_json(self) -> str:
        """The file's text: sorted keys, so that equal datasets have equal files."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"


def content_hash(dtype: str, tokenizer: TokenizerInfo, splits: dict[Any, SplitInfo]) -> str:
    """SHA-256 over the canonical JSON of all that decides what a reader sees."""
    content = {
        "format_version": FORMAT_VERSION,
        "dtype": dtype,
        "tokenizer": tokenizer.model_dump(mode="json"),
        "splits": {name: info.model_dump(mode="json") for name, info in splits.items()},
    }
    return canonical_hash(content)


def canonical_hash(content: Any) -> str:
    """SHA-256 in hexadecimal of the canonical JSON (sorted keys, no spaces) of a JSON value."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def token_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The smallest token type that holds every id below `vocab_size`."""
    return "uint16" if vocab_size <= 65_536 else "uint32"
