"""`pha` that is spoilt at chosen steps.

FAULTS="nan@5/1 spike@9 disk@8/1" is a NaN in step 5 of rank 1, a loss of fifty times its size in step 9 of every rank,
and a disk that is full when rank 1 writes the checkpoint of step 8; clock@7 and clock@7/back set the time eleven days
on or back; memory@5/1 asks for more than there is in step 5 of rank 1. Each happens once, also when a step is taken
again.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import torch
from torch import Tensor

from pretrain import cli, saving
from pretrain.engine import Engine

FACTORS = {"nan": float("nan"), "spike": 50.0}


def main() -> None:
    faults, full, jumps, greedy = {}, {}, {}, {}
    for text in os.environ["FAULTS"].split():
        kind, _, place = text.partition("@")
        step, _, rank = place.partition("/")
        if kind == "clock":
            jumps[int(step)] = 1e6 if rank != "back" else -1e6
        elif kind == "memory":
            greedy[int(step)] = rank or "0"
        elif kind == "disk":
            full[f"step-{int(step):08d}"] = rank or os.environ.get("RANK", "0")
        else:
            faults[int(step)] = (FACTORS[kind], int(rank) if rank else None)
    begin_step, loss_sum = Engine.begin_step, Engine.loss_sum
    now: dict[str, float] = {"factor": 1.0}

    def begin(self: Engine, step: int) -> None:
        if greedy.pop(step + 1, None) == os.environ.get("RANK", "0"):
            torch.empty(1 << 50)
        jump = jumps.pop(step + 1, 0.0)
        if jump:
            real = time.time
            time.time = lambda: real() + jump
        factor, rank = faults.pop(step + 1, (1.0, None))
        now["factor"] = factor if rank in (None, self.ranks.world.rank) else 1.0
        begin_step(self, step)

    def spoilt(self: Engine, *batch: Tensor) -> Tensor:
        loss = loss_sum(self, *batch)
        return loss * now["factor"] if loss.requires_grad else loss

    def write(files: dict[Path, bytes]) -> None:
        wanted = next((name for name in full if name in str(next(iter(files)))), None)
        if wanted is not None and full.pop(wanted) == os.environ.get("RANK", "0"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_files(files)

    write_files, saving.write_files = saving.write_files, write
    Engine.begin_step, Engine.loss_sum = begin, spoilt
    cli.main()


if __name__ == "__main__":
    main()
