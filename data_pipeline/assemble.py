"""The last steps of a build: the layout from the encoded ranges, and the dataset from the finished shards."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.build_plan import Plan, Task, finished_directory, settings_of, wanted_splits, write_atomically
from data_pipeline.clean import CleaningReport
from data_pipeline.compare import overlaps_of
from data_pipeline.encode import STAGE as ENCODED
from data_pipeline.encode import tokenizer_directory, tokenizer_of
from data_pipeline.layout import STAGE as SHARDS
from data_pipeline.layout import choose_block_tokens, lay_out, load_layout, read_rows, save_layout
from data_pipeline.schema import (
    BUILD_FILE,
    INDEX_FILE,
    Index,
    ShardInfo,
    SplitInfo,
    TableInfo,
    TokenizerInfo,
    content_hash,
    token_dtype,
)
from data_pipeline.shards import HashingFile, shard_name
from data_pipeline.split import SplitName
from data_pipeline.spool import range_count, spool_totals
from data_pipeline.tokenizer import Tokenizer

_TOTALS = "totals.json"


def make_layout(plan: Plan, ranges: int) -> None:
    """Lay out all splits, if that is not done yet. Raises OSError."""
    target = plan.result("layout", "splits")
    if target.exists():
        return
    itemsize = tokenizer_of(plan).dtype.itemsize
    with finished_directory(target) as directory:
        totals: dict[str, Any] = {}
        block_tokens = plan.config.block_tokens
        for split in wanted_splits(plan.config):  # train comes first: its tokens decide about the size of a block
            rows = read_rows(plan, split, ranges)
            tokens, bytes_, words = (
                sum(int(part[name].sum(dtype=np.int64)) for part in rows) for name in ("tokens", "bytes", "words")
            )
            block_tokens = block_tokens or choose_block_tokens(tokens)
            layout = lay_out(rows, itemsize, block_tokens, plan.config.shard_bytes)
            save_layout(directory, split, layout)
            shards = int(layout.blocks["shard"][-1]) + 1
            totals[split] = {"tokens": tokens, "bytes": bytes_, "words": words, "shards": shards}
        text = json.dumps({"block_tokens": block_tokens, "splits": totals})
        (directory / _TOTALS).write_text(text, encoding="utf-8")


def read_totals(plan: Plan) -> dict[str, Any]:
    """What the layout says of block size and splits. Raises OSError."""
    path = plan.result("layout", "splits") / _TOTALS
    totals: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return totals


def shard_tasks(plan: Plan) -> list[Task]:
    """The shards that are still to be written."""
    return [
        ["shard", split, number]
        for split, total in read_totals(plan)["splits"].items()
        for number in range(total["shards"])
        if not plan.result(SHARDS, shard_name(split, number)).exists()
    ]


def publish(plan: Plan, fingerprint: str) -> None:
    """Assemble the dataset and put it where it was wanted, by a rename. Raises OSError."""
    totals = spool_totals(plan)
    output = plan.config.output
    os.rename(assemble(plan, fingerprint, totals.reports, range_count(plan, totals)), output)  # noqa: PTH104
    descriptor = os.open(output.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def assemble(plan: Plan, fingerprint: str, reports: tuple[CleaningReport, ...], ranges: int) -> Path:
    """Put the finished shards, tables, tokenizer and index into one directory; may be repeated after a kill.

    Files appear whole: should one who was taken for dead come back, what he writes are the same bytes, or nothing.
    Raises OSError.
    """
    directory = plan.directory / "dataset"
    (directory / "index").mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    for leftover in directory.rglob("*.tmp-*"):
        leftover.unlink(missing_ok=True)
    totals = read_totals(plan)
    splits = {split: _assemble_split(plan, directory, split, total) for split, total in totals["splits"].items()}
    tokenizer = tokenizer_of(plan)
    unfinished = directory / f"{tokenizer.file_name}.tmp-{os.getpid()}"
    shutil.copyfile(tokenizer_directory(plan) / tokenizer.file_name, unfinished)
    unfinished.replace(directory / tokenizer.file_name)
    info, dtype = tokenizer_info(tokenizer), token_dtype(tokenizer.vocab_size)
    _count_encoded(plan, reports, ranges)
    sources = [source.spec for source in plan.config.canonical_sources()]
    index = Index(
        hash=content_hash(dtype, info, splits),
        dtype=dtype,
        block_tokens=totals["block_tokens"],
        tokenizer=info,
        splits=splits,
        report=report_of(dict(zip(sources, reports, strict=True))) | {"overlaps": overlaps_of(plan).report()},
        config=settings_of(plan.config),
    )
    write_atomically(directory / INDEX_FILE, index.to_json())
    write_atomically(directory / BUILD_FILE, json.dumps({"fingerprint": fingerprint}) + "\n")
    return directory


def tokenizer_info(tokenizer: Tokenizer) -> TokenizerInfo:
    """What the index says about a tokenizer."""
    return TokenizerInfo(
        file=tokenizer.file_name,
        sha256=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        kind=tokenizer.kind,
    )


def _assemble_split(plan: Plan, directory: Path, split: SplitName, total: dict[str, int]) -> SplitInfo:
    layout = load_layout(plan, split)
    shards: list[ShardInfo] = []
    checksums: list[np.ndarray] = []
    for number in range(total["shards"]):
        name = shard_name(split, number)
        finished = plan.result(SHARDS, name)
        if not (directory / name).exists():
            with suppress(FileNotFoundError):  # moved by another one just now
                (finished / name).rename(directory / name)
        shards.append(ShardInfo.model_validate_json((finished / "record.json").read_bytes()))
        checksums.append(np.load(finished / "checksums.npy", allow_pickle=False))
    blocks = np.array(layout.blocks)
    blocks["crc32"] = np.concatenate(checksums)
    return SplitInfo(
        documents=len(layout.documents),
        tokens=total["tokens"],
        bytes=total["bytes"],
        words=total["words"],
        blocks=len(blocks),
        shards=tuple(shards),
        blocks_table=_write_table(directory / "index" / f"{split}.blocks.npy", blocks),
        documents_table=_write_table(directory / "index" / f"{split}.documents.npy", layout.documents),
    )


def _write_table(path: Path, table: np.ndarray) -> TableInfo:
    unfinished = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    file = HashingFile(unfinished)
    header = {"descr": np.lib.format.dtype_to_descr(table.dtype), "fortran_order": False, "shape": (len(table),)}
    np.lib.format.write_array_header_1_0(file, header)
    for first in range(0, len(table), 1 << 16):
        file.write(table[first : first + (1 << 16)].tobytes())
    file.close()
    unfinished.replace(path)
    return TableInfo(name=path.name, sha256=file.hexdigest())


def _count_encoded(plan: Plan, reports: tuple[CleaningReport, ...], ranges: int) -> None:
    """Add to the reports what became of the cleaned documents."""
    for number in range(ranges):
        counts = json.loads((plan.result(ENCODED, number) / "record.json").read_text(encoding="utf-8"))
        for report, part in zip(reports, counts, strict=True):
            report.merge(CleaningReport(**part))


def report_of(sources: dict[str, CleaningReport]) -> dict[str, Any]:
    """The cleaning report of a dataset: sums, and under ``sources`` each source's own."""
    total = CleaningReport()
    for report in sources.values():
        total.merge(report)
    return asdict(total) | {"sources": {spec: asdict(report) for spec, report in sources.items()}}
