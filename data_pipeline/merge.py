"""Several datasets of one tokenizer as one: their documents in the order of their hash, each once."""

from __future__ import annotations

import heapq
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.assemble import tokenizer_info
from data_pipeline.build_plan import clear, locked, work_directory
from data_pipeline.config import BuildConfig
from data_pipeline.dataset import Dataset, Split
from data_pipeline.errors import DataError
from data_pipeline.layout import choose_block_tokens
from data_pipeline.progress import BuildProgress
from data_pipeline.schema import BUILD_FILE, INDEX_FILE, Index, SplitInfo, canonical_hash, content_hash
from data_pipeline.shards import SplitWriter
from data_pipeline.tokenizer import Tokenizer

#: Of a document that stands in several splits, the one held out most strictly is kept: nothing that is tested on
#: may be trained on.
_STRICTNESS = {"test": 0, "validation": 1, "train": 2}
#: Memory for the blocks of one dataset; every run of hashes holds a block of its own beside it.
_CACHE_BYTES = 1 << 20

#: Hash, strictness, split and ids of a document.
_Item = tuple[bytes, int, str, np.ndarray]


def merge(output: Path | str, datasets: Sequence[Path | str], progress: bool = True) -> Dataset:
    """Write the documents of all `datasets` into a new dataset at `output` and open it.

    Exact duplicates are dropped; of a document in several splits the copy of the held-out split stays. The result
    does not depend on the order of the datasets. Blocks and shards are cut anew.

    Raises:
        DataError: no dataset is given, one is damaged, their tokenizers differ, or the output exists.
    """
    output = Path(output)
    if output.exists():
        raise DataError(f"{output} exists: merge into a new directory.")
    work = work_directory(output)
    try:
        with ExitStack() as stack:
            opened = [stack.enter_context(Dataset.open(path, cache_bytes=_CACHE_BYTES)) for path in datasets]
            _check(opened)
            stack.enter_context(locked(work, "alone"))
            stack.callback(shutil.rmtree, work, ignore_errors=True)
            clear(work)
            os.rename(_write(work / "dataset", opened, BuildProgress(progress)), output)  # noqa: PTH104
    except OSError as error:
        raise DataError(f"{output} cannot be written ({error}): check the disk and the directory.") from error
    return Dataset.open(output)


def _check(datasets: list[Dataset]) -> None:
    if not datasets:
        raise DataError("nothing to merge: name one dataset or more.")
    for other in datasets[1:]:
        if other.tokenizer_hash != datasets[0].tokenizer_hash:
            raise DataError(
                f"{other.path} has another tokenizer than {datasets[0].path}: build it again with "
                f"--tokenizer {datasets[0].path / datasets[0].index.tokenizer.file}."
            )


def _write(directory: Path, datasets: list[Dataset], progress: BuildProgress) -> Path:
    """Everything below `directory`, which is returned. Raises DataError, OSError."""
    (directory / "index").mkdir(parents=True)
    first = datasets[0].index
    tokenizer = datasets[0].tokenizer()
    tokenizer.save(directory / first.tokenizer.file)
    sizes: Counter[str] = Counter()
    for dataset in datasets:
        sizes.update({name: dataset.split(name).tokens for name in dataset.split_names})
    block_tokens = choose_block_tokens(sizes["train"])
    dropped: Counter[str] = Counter()
    with progress.phase("merge", sum(d.split(n).bytes for d in datasets for n in d.split_names)) as advance:
        splits = _write_splits(directory, datasets, tokenizer, block_tokens, dropped, advance)
    info = tokenizer_info(tokenizer)
    merged = sorted(dataset.hash for dataset in datasets)
    by_hash = {dataset.hash: dataset.index for dataset in datasets}
    report: dict[str, Any] = {
        "documents_kept": sum(part.documents for part in splits.values()),
        "duplicates": dropped.total(),
        "duplicates_by_split": dict(dropped),
        "merged": {hash_: by_hash[hash_].report for hash_ in merged},
    }
    index = Index(
        hash=content_hash(first.dtype, info, splits),
        dtype=first.dtype,
        block_tokens=block_tokens,
        tokenizer=info,
        splits=splits,
        report=report,
        config={"merged": [by_hash[hash_].config for hash_ in merged]},
    )
    (directory / INDEX_FILE).write_text(index.to_json(), encoding="utf-8")
    fingerprint = canonical_hash(["merged", merged])
    (directory / BUILD_FILE).write_text(json.dumps({"fingerprint": fingerprint}) + "\n", encoding="utf-8")
    return directory


def _write_splits(
    directory: Path,
    datasets: list[Dataset],
    tokenizer: Tokenizer,
    block_tokens: int,
    dropped: Counter[str],
    advance: Any,
) -> dict[Any, SplitInfo]:
    runs = [run for dataset in datasets for name in dataset.split_names for run in _runs(dataset.split(name))]
    shard_bytes: int = BuildConfig.model_fields["shard_bytes"].default
    writers: dict[str, SplitWriter] = {}
    previous = b""
    try:
        for hash_, _, split, ids in heapq.merge(*runs, key=lambda item: item[:2]):
            data = tokenizer.decode_bytes(ids.tolist())
            advance(1, len(data))
            if hash_ == previous:
                dropped[split] += 1
                continue
            previous = hash_
            if split not in writers:
                writers[split] = SplitWriter(
                    directory,
                    split,
                    dtype=datasets[0].index.dtype,
                    bos_id=tokenizer.bos_id,
                    block_tokens=block_tokens,
                    shard_bytes=shard_bytes,
                )
            writers[split].add(hash_, ids, len(data), len(data.decode("utf-8").split()))
        return {split: writer.close() for split, writer in writers.items()}
    except BaseException:
        for writer in writers.values():
            writer.discard()
        raise


def _runs(split: Split) -> list[Iterator[_Item]]:
    """The stretches of a split in which hashes rise: one as it was built, and one more for each time it grew."""
    hashes = np.ascontiguousarray(split.document_table["hash"]).view([("high", ">u8"), ("low", ">u8")]).reshape(-1)
    high, low = hashes["high"], hashes["low"]
    falls = (high[1:] < high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] < low[:-1]))
    edges = [0, *(np.flatnonzero(falls) + 1).tolist(), split.documents]
    return [_read(split, first, end) for first, end in pairwise(edges)]


def _read(split: Split, first: int, end: int) -> Iterator[_Item]:
    strictness = _STRICTNESS[split.name]
    block_number, block = -1, np.zeros(0, dtype=np.uint16)
    blocks = np.searchsorted(split.blocks["first_document"], np.arange(first, end), side="right") - 1
    for row, number in zip(range(first, end), blocks.tolist(), strict=True):
        if number != block_number:
            block_number, block = number, split.read_block(number)
        entry = split.document_table[row]
        start = int(entry["offset"])
        yield entry["hash"].tobytes(), strictness, split.name, block[start + 1 : start + int(entry["tokens"])]
