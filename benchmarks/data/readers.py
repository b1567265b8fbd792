"""The readers that are compared, their datasets (written when first needed) and what was found out about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.data.runner import Contestant, Runner
from benchmarks.data.sizes import Sizes
from benchmarks.data.stream import BATCH
from benchmarks.errors import BenchError

#: Where in an epoch a run is resumed.
PLACES = (0.01, 0.5, 0.99)
_MOSAIC, _LITDATA, _DATASETS = ("mosaicml-streaming", "torch"), ("litdata", "torch"), ("datasets", "torch")


@dataclass(frozen=True)
class Reader:
    """One way to read: the format it needs, its worker's arguments, and in words what it shuffles.

    `baseline` marks the row that ratios refer to.
    """

    key: str
    label: str
    worker: str
    format: str
    arguments: Mapping[str, Any]
    shuffles: str
    needs: tuple[str, ...] = ()
    baseline: bool = False


READERS = (
    Reader("ours-raw", "ours, uint16 as stored", "read.ours", "ours", {"form": "raw"}, "all blocks, in lanes"),
    Reader(
        "ours-full",
        "ours, int64 inputs and labels, documents",
        "read.ours",
        "ours",
        {"form": "full"},
        "all blocks, in lanes",
    ),
    Reader("memmap", "numpy memmap, sample by sample", "read.memmap", "stream", {"fancy": False}, "all sequences"),
    Reader(
        "memmap-batch", "numpy memmap, one index a batch", "read.memmap", "stream", {"fancy": True}, "all sequences"
    ),
    Reader(
        "webdataset",
        "webdataset, a sequence a member",
        "read.webdataset",
        "webdataset-1",
        {"members": 1},
        "shards, buffer of 1,024",
        baseline=True,
    ),
    Reader(
        "webdataset-64",
        "webdataset, 64 sequences a member",
        "read.webdataset",
        "webdataset-64",
        {"members": 64},
        "shards, buffer of 16 members",
    ),
    Reader(
        "mosaic",
        "MosaicML StreamingDataset",
        "read.mosaic",
        "mosaic",
        {"loader": False},
        "shards and blocks (py1e)",
        _MOSAIC,
    ),
    Reader(
        "mosaic-loader",
        "MosaicML StreamingDataLoader",
        "read.mosaic",
        "mosaic",
        {"loader": True},
        "shards and blocks (py1e)",
        _MOSAIC,
    ),
    Reader(
        "litdata",
        "LitData StreamingDataset, TokensLoader",
        "read.litdata",
        "litdata",
        {"loader": False},
        "chunks and within",
        _LITDATA,
    ),
    Reader(
        "litdata-loader",
        "LitData StreamingDataLoader, TokensLoader",
        "read.litdata",
        "litdata",
        {"loader": True},
        "chunks and within",
        _LITDATA,
    ),
    Reader(
        "datasets",
        "HF datasets, shuffle(), torch",
        "read.datasets",
        "datasets",
        {"form": "map"},
        "all sequences",
        _DATASETS,
    ),
    Reader(
        "datasets-iterable",
        "HF IterableDataset, shuffle(), torch",
        "read.datasets",
        "datasets",
        {"form": "iterable"},
        "shards, buffer of 1,024",
        _DATASETS,
    ),
)
#: Format → the worker that writes it and its further arguments.
_WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours": ("write.ours", {}),
    "webdataset-1": ("write.webdataset", {"members": 1}),
    "webdataset-64": ("write.webdataset", {"members": 64}),
    "mosaic": ("write.mosaic", {}),
    "litdata": ("write.litdata", {}),
    "datasets": ("write.datasets", {}),
}


class Library:
    """Datasets and checks, each made once.

    Attributes:
        sizes: as given.
        stream: digests of the stream that all formats hold.
        batches: of an epoch.
        stops: numbers of batches after which a run is resumed, by place.
    """

    def __init__(self, runner: Runner, sizes: Sizes) -> None:
        self._runner, self.sizes = runner, sizes
        self.batches = sizes.sequences // BATCH
        self.stops = {place: min(self.batches - 1, max(1, int(self.batches * place))) for place in PLACES}
        self._file = runner.work / "stream.bin"
        arguments = {"path": str(self._file), "sequences": sizes.sequences, "length": sizes.length, "seed": 0}
        self.stream = runner.run("write.stream", arguments)
        self._written: set[str] = {"stream"}
        self._checks: dict[str, dict[str, Any]] = {}

    def folder(self, reader: Reader) -> Path:
        """The dataset in the reader's format. Raises BenchError if it cannot be written."""
        path = self._file if reader.format == "stream" else self._runner.work / reader.format
        if reader.format not in self._written:
            worker, options = _WRITERS[reader.format]
            ours, others = {"shard_bytes": self.sizes.shard_bytes}, {"length": self.sizes.length}
            options = {**options, **(ours if reader.format == "ours" else others)}
            arguments = {"stream": str(self._file), "path": str(path), **options}
            self._runner.run(worker, arguments, bool(reader.needs))
            self._written.add(reader.format)
        return path

    def ours(self) -> Path:
        """Our dataset. Raises BenchError."""
        return self.folder(READERS[0])

    def contestant(self, reader: Reader, mode: str, label: str | None = None, **options: Any) -> Contestant:
        """The reader as a contestant in one of the driver's modes. Raises BenchError if its dataset is not there."""
        arguments = {
            "path": str(self.folder(reader)),
            "length": self.sizes.length,
            "mode": mode,
            **reader.arguments,
            **options,
        }
        if reader.format == "ours" and not self.sizes.tensors:
            arguments["form"] = "rows"
        return Contestant(reader.key, label or reader.label, reader.worker, arguments, reader.needs)

    def check(self, reader: Reader) -> dict[str, Any]:
        """What an undisturbed epoch gives: see :func:`benchmarks.data.driver.drive`. Raises BenchError."""
        if reader.key not in self._checks:
            self._runner.say(f"checking {reader.label}")
            stops = sorted({0, *self.stops.values()})
            self._checks[reader.key] = self._runner.attempt(self.contestant(reader, "check", stops=stops))
        return self._checks[reader.key]

    def reads_all(self, reader: Reader) -> bool:
        """Whether an epoch gives every sequence (ours: every label) exactly once. Raises BenchError."""
        found = self.check(reader)
        if reader.format == "ours":  # its sequences are cut along shuffled blocks, so only their tokens can agree
            return bool(found["tokens"] == self.stream["labels"] and found["count"] == self.stream["count"])
        return bool(found["rows"] == self.stream["rows"])

    def resume(self, reader: Reader, stop: int) -> Contestant:
        """The reader resuming after so many batches (0: from the start, without a state). Raises BenchError."""
        state = self.check(reader)["states"][str(stop)]["state"]
        file = self._runner.work / f"{reader.key}-{stop}.json"
        file.write_text(json.dumps(state), encoding="utf-8")
        return self.contestant(reader, "resume", state_file=str(file) if stop else None)

    def is_next(self, reader: Reader, stop: int, result: dict[str, Any]) -> bool:
        """Whether a resumed batch is the one that the undisturbed epoch has there. Raises BenchError."""
        return bool(result["batch"] == self.check(reader)["states"][str(stop)]["batch"])

    def notices_damage(self, reader: Reader) -> bool:
        """Whether reading an epoch fails when one byte of the stored tokens is flipped.

        Raises BenchError if it also fails once the byte is as it was: then the byte was not why.
        """
        data = self.contestant(reader, "check")
        file, where = self._token_byte(self.folder(reader))
        _flip(file, where)
        noticed = False
        try:
            self._runner.attempt(data)
        except BenchError:
            noticed = True
        finally:
            _flip(file, where)
        if noticed:
            self._runner.attempt(data)
        return noticed

    def _token_byte(self, folder: Path) -> tuple[Path, int]:
        """A file of a dataset and the place of a byte of its tokens, found by what the stream has in its middle."""
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()] if folder.is_dir() else [folder]
        length = self.sizes.length
        for number in range(8):  # of that many sequences: a format may have a border within the first of them
            with self._file.open("rb") as handle:
                shift = number * 254 % max(2, length - 64)
                handle.seek((self.sizes.sequences // 2 + number) * length * 2 + length + shift)
                wanted = handle.read(64)
            for file in files:
                place = file.read_bytes().find(wanted)
                if place >= 0:
                    return file, place + 32
        raise BenchError(f"{folder} does not hold the stream's tokens as they are: its damage cannot be tested.")


def _flip(file: Path, where: int) -> None:
    with file.open("r+b") as handle:
        handle.seek(where)
        byte = handle.read(1)[0]
        handle.seek(where)
        handle.write(bytes([byte ^ 0x10]))
