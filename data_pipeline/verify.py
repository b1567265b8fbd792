"""Reads a whole dataset and checks everything that can be checked, listing every problem it finds."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_pipeline.checksum import crc32
from data_pipeline.dataset import read_index
from data_pipeline.errors import DataError
from data_pipeline.index_files import IndexFiles, check_hash, shard_size_problem
from data_pipeline.schema import BLOCKS, DOCUMENTS, Index, ShardInfo, SplitInfo, content_hash
from data_pipeline.split import document_hash
from data_pipeline.storage import LocalStorage
from data_pipeline.tokenizer import Tokenizer, load_tokenizer

#: Documents a split that are decoded and compared with their stored hash.
_SPOT_CHECKS = 64
_TAR_BLOCK = 512


@dataclass
class VerifyReport:
    """What was checked, and what is wrong: one sentence a problem. `blocks` counts those that could be read."""

    problems: list[str] = field(default_factory=list)
    shards: int = 0
    blocks: int = 0
    documents: int = 0
    tokens: int = 0
    documents_decoded: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": self.ok, **asdict(self)}


def verify(path: Path | str) -> VerifyReport:
    """Check the dataset at `path`: hashes of all files, tar structure, every block's checksum, both tables, all
    counts.

    Documents' separators must stand where the documents table says, token ids must lie in the vocabulary, the text
    bytes must add up, and some documents of each split are decoded and must hash to their stored hash. Damage is
    reported, not raised.
    """
    path = Path(path)
    report = VerifyReport()
    try:
        index = read_index(path)
    except DataError as error:
        report.problems.append(str(error))
        return report
    if content_hash(index.dtype, index.tokenizer, dict(index.splits)) != index.hash:
        report.problems.append(f"{path}/index.json was changed: its hash does not fit its content.")
    tokenizer = _tokenizer(path, index, report)
    for name, info in index.splits.items():
        _SplitCheck(path, name, info, index, tokenizer, report).run()
    return report


def _tokenizer(path: Path, index: Index, report: VerifyReport) -> Tokenizer | None:
    file = path / index.tokenizer.file
    try:
        check_hash(file, index.tokenizer.sha256)
        tokenizer = load_tokenizer(file)
    except DataError as error:
        report.problems.append(str(error))
        return None
    if (tokenizer.vocab_size, tokenizer.bos_id) != (index.tokenizer.vocab_size, index.tokenizer.bos_id):
        report.problems.append(f"{file} has another vocabulary or separator than index.json says.")
    return tokenizer


class _SplitCheck:
    """The checks of one split; collects into the report."""

    def __init__(
        self, path: Path, name: str, info: SplitInfo, index: Index, tokenizer: Tokenizer | None, report: VerifyReport
    ) -> None:
        self.path, self.name, self.info, self.index, self.report = path, name, info, index, report
        self.tokenizer = tokenizer
        self.dtype = np.dtype(index.dtype).newbyteorder("<")
        self.lengths = np.array(tokenizer.byte_lengths(), dtype=np.int64) if tokenizer is not None else None
        self.bytes = self.tokens = 0
        self.complete = True
        self.spots = set(np.linspace(0, info.documents - 1, _SPOT_CHECKS).astype(int).tolist())

    def problem(self, text: str) -> None:
        """Record a problem of this split."""
        self.report.problems.append(f"{self.name}: {text}")

    def run(self) -> None:
        """All checks, as far as the damage allows."""
        for shard in self.info.shards:
            self._check_shard_file(shard)
        try:
            files = IndexFiles(LocalStorage(self.path), self.path)
            blocks = files.table(self.info.blocks_table, BLOCKS, self.info.blocks)
            documents = files.table(self.info.documents_table, DOCUMENTS, self.info.documents)
        except DataError as error:
            self.problem(str(error))
            return
        for number, shard in enumerate(self.info.shards):
            self._check_blocks(number, shard, blocks, documents)
        if not self.complete:
            return
        if self.tokens != self.info.tokens:
            self.problem(f"the blocks hold {self.tokens} tokens, index.json says {self.info.tokens}.")
        if self.lengths is not None and self.bytes != self.info.bytes:
            self.problem(f"the text has {self.bytes} bytes, index.json says {self.info.bytes}.")

    def _check_shard_file(self, shard: ShardInfo) -> None:
        file = self.path / shard.name
        self.report.shards += 1
        wrong_size = shard_size_problem(file, shard.bytes)
        if wrong_size is not None:
            self.problem(f"{wrong_size}.")
            return
        with file.open("rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != shard.sha256:
                self.problem(f"shard {file} has another SHA-256 than index.json says.")
            handle.seek(-2 * _TAR_BLOCK, 2)
            if handle.read().strip(b"\0"):
                self.problem(f"shard {file} does not end with the two zero blocks of a tar file.")

    def _check_blocks(self, number: int, shard: ShardInfo, blocks: np.ndarray, documents: np.ndarray) -> None:
        file = self.path / shard.name
        rows = np.flatnonzero(blocks["shard"] == number)
        if len(rows) != shard.blocks or int(blocks["tokens"][rows].sum()) != shard.tokens:
            self.problem(f"shard {file} has other numbers of blocks or tokens in the blocks table than in index.json.")
        try:
            handle = file.open("rb")
        except OSError:
            self.complete = False  # already reported as missing
            return
        with handle:
            members = _members(file)
            expected = {(f"{row:09d}.bin", int(blocks["offset"][row]), int(blocks["bytes"][row])) for row in rows}
            if members != expected:
                self.problem(f"the members of shard {file} are not those of the blocks table.")
            for row in rows.tolist():
                self._check_block(file, handle, row, blocks, documents)

    def _check_block(self, file: Path, handle: BinaryIO, row: int, blocks: np.ndarray, documents: np.ndarray) -> None:
        block = blocks[row]
        handle.seek(int(block["offset"]))
        data = handle.read(int(block["bytes"]))
        if len(data) < int(block["bytes"]) or crc32(data) != int(block["crc32"]):
            self.problem(f"{file}: block {row} is {'cut short' if len(data) < block['bytes'] else 'corrupt'}.")
            self.complete = False
            return
        tokens = np.frombuffer(data, dtype=self.dtype)
        first = int(block["first_document"])
        end = int(blocks["first_document"][row + 1]) if row + 1 < len(blocks) else len(documents)
        table = documents[first:end]
        self.report.blocks += 1
        self.report.documents += len(table)
        self.report.tokens += len(tokens)
        self.tokens += len(tokens)
        if len(tokens) != int(block["tokens"]) or int(tokens.max(initial=0)) >= self.index.tokenizer.vocab_size:
            self.problem(f"{file}: block {row} has a wrong number of tokens, or ids outside the vocabulary.")
            self.complete = False
            return
        starts = np.flatnonzero(tokens == self.index.tokenizer.bos_id)
        sizes = np.diff(np.append(starts, len(tokens)))
        if not np.array_equal(starts, table["offset"]) or not np.array_equal(sizes, table["tokens"]):
            self.problem(f"{file}: the documents of block {row} are not where the documents table says.")
            return
        if self.lengths is not None:
            self.bytes += int(self.lengths[tokens].sum())
        for number in sorted(self.spots.intersection(range(first, end))):
            self._check_text(number, tokens, table[number - first])

    def _check_text(self, number: int, tokens: np.ndarray, row: Any) -> None:
        if self.tokenizer is None:
            return
        start = int(row["offset"])
        text = self.tokenizer.decode(tokens[start : start + int(row["tokens"])].tolist())
        self.report.documents_decoded += 1
        if document_hash(text) != row["hash"].tobytes():
            self.problem(f"document {number} decodes to another text than the one that was stored.")


def _members(file: Path) -> set[tuple[str, int, int]]:
    """(name, offset of the data, size) of the plain files in a tar, as far as it can be read."""
    found: set[tuple[str, int, int]] = set()
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.isreg():
                    found.add((member.name, member.offset_data, member.size))
    except (tarfile.TarError, OSError, EOFError):
        return found
    return found
