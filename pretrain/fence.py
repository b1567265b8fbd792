"""The generations of a run: each start is one, and only the newest may publish anything.

A node that a scheduler has given up can come back with its processes alive, and a run may then have two rank 0s that
each believe to be the only one. The file lock of the run directory does not reach over every network file system. So
each start raises a number in the run directory, with one file that only one process can create, and whoever is about
to publish a checkpoint or a record looks whether a higher one is there.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from pretrain.errors import Overtaken
from pretrain.exits import start_mark


@dataclass(frozen=True)
class Fence:
    """One generation of the run whose `generations` folder this is."""

    folder: Path
    generation: int

    @classmethod
    def rise(cls, folder: Path) -> Fence:
        """The next generation: all before it are overtaken from now on. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        generation = _highest(folder) + 1
        while True:
            try:
                # Creating exclusively is atomic, on network file systems too.
                descriptor = os.open(folder / _name(generation), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                generation += 1
                continue
            with os.fdopen(descriptor, "w") as file:
                who = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), "mark": start_mark()}
                file.write(json.dumps(who) + "\n")
                file.flush()
                os.fsync(file.fileno())
            return cls(folder, generation)

    def check(self) -> None:
        """Raises Overtaken when a later start of the run exists: it has published nothing for nobody to lose."""
        if (self.folder / _name(self.generation + 1)).exists():  # numbers leave no gap
            raise Overtaken(
                f"This process belongs to start {self.generation} of the run {self.folder.parent}, which has been "
                f"started again since (start {_highest(self.folder)}); it leaves, and has published nothing more."
            )


def _name(generation: int) -> str:
    return f"{generation:06d}.json"


def _highest(folder: Path) -> int:
    return max((int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit()), default=0)
