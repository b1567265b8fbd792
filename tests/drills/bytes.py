"""Bytes flipped, files cut short and files deleted: in checkpoints all is noticed, in shards all that is read."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from pretrain.checkpoint import Checkpoint, CheckpointStore


@dataclass
class Harm:
    """What was done, and what came of it."""

    done: int = 0
    noticed: int = 0
    harmless: int = 0
    """Not noticed, and what is read is the same to the last byte (padding of an archive)."""
    missed: list[str] = field(default_factory=list)


def harm(path: Path, chance: random.Random) -> str:
    """Flips a bit, cuts the file short, or deletes it; says which."""
    size = path.stat().st_size
    kind = chance.choice(["flip", "flip", "cut", "delete"]) if size else "delete"
    if kind == "delete":
        path.unlink()
        return f"{path.name} deleted"
    if kind == "cut":
        left = chance.randrange(size)
        with path.open("r+b") as file:
            file.truncate(left)
        return f"{path.name} cut to {left} of {size} bytes"
    place, bit = chance.randrange(size), 1 << chance.randrange(8)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ bit]))
    return f"{path.name}: bit {bit:#x} of byte {place} flipped"


def checkpoints(run: Path, folder: Path, wanted: int, seed: int = 0) -> Harm:
    """Harms the newest of a run's two checkpoints `wanted` times; each time the one before must be found."""
    chance, found = random.Random(seed), Harm()
    directory = folder / "checkpoints"
    shutil.copytree(run / "checkpoints", directory)
    old, new = CheckpointStore(directory).all()[-2:]
    files = sorted(p for p in new.path.rglob("*") if p.is_file())
    for _ in range(wanted):
        path = chance.choice(files)
        kept = path.read_bytes()
        what = harm(path, chance)
        found.done += 1
        verified = CheckpointStore(directory).latest()
        aside = list(directory.glob(f"{new.path.name}.damaged-*"))
        if verified == old and len(aside) == 1:
            found.noticed += 1
            aside[0].rename(new.path)
        else:
            found.missed.append(what)
        path.write_bytes(kept)
        if Checkpoint(new.path).problems():
            raise RuntimeError(f"the drill did not mend {what}")
    return found


def shards(dataset: Path, folder: Path, wanted: int, seed: int = 0) -> Harm:
    """Harms a dataset's shards `wanted` times; reading all of it must name the shard, or give the same tokens."""
    chance, found = random.Random(seed), Harm()
    copy = folder / "dataset"
    shutil.copytree(dataset, copy)
    whole = _read(copy)
    files = sorted(copy.glob("*.tar"))
    for _ in range(wanted):
        path = chance.choice(files)
        kept = path.read_bytes()
        what = harm(path, chance)
        found.done += 1
        try:
            same = all(np.array_equal(a, b) for a, b in zip(_read(copy), whole, strict=True))
        except DataError as error:
            if path.name in str(error):
                found.noticed += 1
            else:
                found.missed.append(f"{what}: the message does not name the shard ({error})")
        else:
            if same:
                found.harmless += 1
            else:
                found.missed.append(what)
        path.write_bytes(kept)
    return found


def _read(path: Path) -> list[np.ndarray]:
    with Dataset.open(path) as dataset:
        splits = [dataset.split(name) for name in dataset.split_names]
        return [split.read_block(block).copy() for split in splits for block in range(len(split.blocks))]
