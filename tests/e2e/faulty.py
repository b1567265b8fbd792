"""`pha` whose losses are spoilt at chosen steps: FAULTS="nan@5/1 spike@9" is a NaN in step 5 of rank 1, and a loss of
fifty times its size in step 9 of every rank. Each happens once, also when a step is taken again."""

from __future__ import annotations

import os

from torch import Tensor

from pretrain import cli
from pretrain.engine import Engine

FACTORS = {"nan": float("nan"), "spike": 50.0}


def main() -> None:
    faults = {}
    for text in os.environ["FAULTS"].split():
        kind, _, place = text.partition("@")
        step, _, rank = place.partition("/")
        faults[int(step)] = (FACTORS[kind], int(rank) if rank else None)
    begin_step, loss_sum = Engine.begin_step, Engine.loss_sum
    now: dict[str, float] = {"factor": 1.0}

    def begin(self: Engine, step: int) -> None:
        factor, rank = faults.pop(step + 1, (1.0, None))
        now["factor"] = factor if rank in (None, self.ranks.world.rank) else 1.0
        begin_step(self, step)

    def spoilt(self: Engine, *batch: Tensor) -> Tensor:
        loss = loss_sum(self, *batch)
        return loss * now["factor"] if loss.requires_grad else loss

    Engine.begin_step, Engine.loss_sum = begin, spoilt
    cli.main()


if __name__ == "__main__":
    main()
