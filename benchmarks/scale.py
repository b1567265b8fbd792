"""What opening a dataset of OpenWebText's size, and of a trillion tokens, costs a rank: time, memory, first sequence.

    python benchmarks/scale.py [--json] [--directory DIR] [--write docs/data.md]

Writes a dataset whose index, tables and tokenizer are real and whose shards are empty files of the right size (they
take no room on a file system with sparse files), then opens it in a process of its own as training does: the index is
parsed, tables and tokenizer are hashed, the sizes of all shards are checked, and the order is made. Nothing is read
from the shards. `own` is memory of the rank alone, `mapped` that of the tables, which the ranks of a machine share, and
`peak` the most that was ever resident.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.checksum import crc32
from data_pipeline.config import TokenizerConfig
from data_pipeline.schema import (
    BLOCKS,
    DOCUMENTS,
    INDEX_FILE,
    TOKENIZER_FILE,
    Index,
    ShardInfo,
    SplitInfo,
    TableInfo,
    TokenizerInfo,
    content_hash,
)
from data_pipeline.tokenizer import train_tokenizer
from pretrain.markdown import check_section, write_section

_SIZES = {"9e9": 9_000_000_000, "1e12": 1_000_000_000_000}
_BLOCK, _SHARD_BYTES, _DOCUMENT = 65_536, 256 * 1024 * 1024, 1_128  # OpenWebText has 1,128 GPT-2 tokens a document
_NO_HASH = "0" * 64
_FIGURES = {
    "blocks": "blocks",
    "shards": "shards",
    "index_json_bytes": "`index.json`, bytes",
    "blocks_table_bytes": "table of blocks, bytes",
    "documents_table_bytes": "table of documents, bytes (training never opens it)",
    "open_s": "open and check, s",
    "first_sequence_s": "until the first sequence is found, s",
    "own_mib": "memory of a rank, MiB",
    "mapped_mib": "mapped tables that ranks share, MiB",
    "peak_mib": "peak of both, MiB",
    "seek_1_percent_ms": "seek to 1 % of an epoch not yet touched, ms",
    "seek_50_percent_ms": "seek to 50 %, ms",
    "seek_99_percent_ms": "seek to 99 %, ms",
}


def write_dataset(directory: Path, tokens: int) -> dict[str, int]:
    """A dataset of about `tokens` tokens with empty shards; gives the sizes of its parts in bytes."""
    (directory / "index").mkdir(parents=True)
    tokenizer = train_tokenizer(["some words to train on, " * 9], TokenizerConfig(vocab_size=300), directory / "model")
    (directory / "model").rename(directory / TOKENIZER_FILE)
    model = (directory / TOKENIZER_FILE).read_bytes()
    blocks = _blocks(tokens)
    np.save(directory / "index" / "train.blocks.npy", blocks)
    shards = _shards(directory, blocks)
    documents = tokens // _DOCUMENT
    digest = hashlib.sha256((directory / "index" / "train.blocks.npy").read_bytes()).hexdigest()
    split = SplitInfo(
        documents=documents,
        tokens=int(blocks["tokens"].sum()),
        bytes=0,
        words=0,
        blocks=len(blocks),
        shards=tuple(shards),
        blocks_table=TableInfo(name="train.blocks.npy", sha256=digest),
        documents_table=TableInfo(name="train.documents.npy", sha256=_NO_HASH),  # training never opens it
    )
    info = TokenizerInfo(
        file=TOKENIZER_FILE,
        sha256=hashlib.sha256(model).hexdigest(),
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        kind="bpe",
    )
    index = Index(
        hash=content_hash("uint16", info, {"train": split}),
        dtype="uint16",
        block_tokens=_BLOCK,
        tokenizer=info,
        splits={"train": split},
        report={},
        config={},
    )
    (directory / INDEX_FILE).write_text(index.to_json(), encoding="utf-8")
    return {
        "blocks": len(blocks),
        "shards": len(shards),
        "index_json_bytes": (directory / INDEX_FILE).stat().st_size,
        "blocks_table_bytes": blocks.nbytes,
        "documents_table_bytes": documents * DOCUMENTS.itemsize,
    }


def _blocks(tokens: int) -> np.ndarray:
    sizes = np.random.default_rng(0).integers(_BLOCK - 2000, _BLOCK + 2000, tokens // _BLOCK)
    room = -(-sizes * 2 // 512) * 512 + 512  # a member: its header and its padded data
    starts = np.cumsum(room) - room
    table = np.zeros(len(sizes), BLOCKS)
    table["shard"] = starts // _SHARD_BYTES
    first_of_shard = np.searchsorted(table["shard"], table["shard"])
    table["offset"] = starts - starts[first_of_shard] + 512
    table["bytes"], table["tokens"] = sizes * 2, sizes
    table["crc32"] = _crc_of_zeros(sizes * 2)
    table["first_document"] = np.arange(len(sizes)) * (_BLOCK // _DOCUMENT)
    return table


def _crc_of_zeros(sizes: np.ndarray) -> np.ndarray:
    """What blocks of so many bytes have that are read from an empty file."""
    distinct, places = np.unique(sizes, return_inverse=True)
    return np.array([crc32(bytes(size)) for size in distinct.tolist()], dtype=np.uint32)[places]


def _shards(directory: Path, blocks: np.ndarray) -> list[ShardInfo]:
    bounds = np.flatnonzero(np.diff(blocks["shard"], prepend=-1, append=-1))
    shards = []
    for number, (first, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        last = blocks[end - 1]
        size = -(-(int(last["offset"]) + int(last["bytes"])) // 512) * 512 + 1024
        name = f"train-{number:06d}.tar"
        with (directory / name).open("wb") as file:
            file.truncate(size)
        tokens = int(blocks["tokens"][first:end].sum())
        shards.append(ShardInfo(name=name, bytes=size, sha256=_NO_HASH, blocks=end - first, tokens=tokens))
    return shards


def measure(directory: Path) -> dict[str, float]:
    """Open the dataset in this process as a rank does, and find sequences. Seconds, milliseconds and MiB."""
    from data_pipeline.dataset import Dataset
    from data_pipeline.stream import Stream

    before = _memory()
    started = time.perf_counter()
    dataset = Dataset.open(directory)
    opened = time.perf_counter()
    stream = Stream({"train": dataset.split("train")}, seq_len=2048, lanes=512)
    order = stream.orders[0]
    epoch = order.sequences_per_epoch
    order.locate(epoch // 2)
    ready = time.perf_counter()
    after = _memory()
    seeks = []
    for share in (0.01, 0.5, 0.99):
        begun = time.perf_counter()
        order.locate(3 * epoch + int(share * epoch))  # the first of them also begins another epoch
        seeks.append((time.perf_counter() - begun) * 1e3)
    return {
        "open_s": opened - started,
        "first_sequence_s": ready - started,
        "own_mib": after["RssAnon"] - before["RssAnon"],
        "mapped_mib": after["RssFile"] - before["RssFile"],
        "peak_mib": after["VmHWM"] - before["VmRSS"],
        "seek_1_percent_ms": seeks[0],
        "seek_50_percent_ms": seeks[1],
        "seek_99_percent_ms": seeks[2],
    }


def _memory() -> dict[str, float]:
    """MiB of this process by kind."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile", "VmRSS", "VmHWM")}


def main() -> None:
    """Measure all sizes, each three times in a process of its own, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--directory", type=Path, help="where the datasets are written; a temporary one otherwise")
    parser.add_argument("--write", type=Path, help="put the table between the markers of this Markdown file")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.open:
        print(json.dumps(measure(arguments.open)))
        return
    if arguments.write:
        check_section(arguments.write, "benchmarks/scale.py")
    with tempfile.TemporaryDirectory(prefix="pha-scale-", dir=arguments.directory) as folder:
        rows = {name: _row(Path(folder) / name, tokens) for name, tokens in _SIZES.items()}
    print(json.dumps(rows, indent=1) if arguments.json else table(rows), flush=True)
    if arguments.write:
        write_section(arguments.write, "benchmarks/scale.py", table(rows))


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    lines = ["| | " + " | ".join(f"{row['tokens']:,} tokens" for row in rows.values()) + " |"]
    lines.append("|---|" + "---:|" * len(rows))
    for name, shown in _FIGURES.items():
        values = [row[name] for row in rows.values()]
        cells = (f"{value:,}" if isinstance(value, int) else f"{value:,.2f}" for value in values)
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _row(directory: Path, tokens: int) -> dict[str, Any]:
    sizes = write_dataset(directory, tokens)
    command = [sys.executable, __file__, "--open", str(directory)]
    runs = [json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout) for _ in range(3)]
    return {"tokens": tokens, **sizes, **{name: float(np.median([run[name] for run in runs])) for name in runs[0]}}


if __name__ == "__main__":
    main()
