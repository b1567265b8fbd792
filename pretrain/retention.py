"""Which checkpoints of a run are kept."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pretrain.config import CheckpointConfig


def kept(checkpoints: Iterable[tuple[int, float | None]], rules: CheckpointConfig) -> set[int]:
    """The steps of those to keep.

    Args:
        checkpoints: step, and the validation loss of those weights if it is known.
        rules: the newest `keep`, those of multiples of `keep_every` for ever, and the `keep_best` with the lowest
            validation losses; of equal ones the older. What one rule keeps, no other removes.
    """
    known = sorted(checkpoints)
    steps = [step for step, _ in known]
    best = sorted((loss, step) for step, loss in known if loss is not None and math.isfinite(loss))[: rules.keep_best]
    chosen = {*steps[-rules.keep :], *(step for _, step in best)}
    if rules.keep_every is not None:
        chosen |= {step for step in steps if step % rules.keep_every == 0}
    return chosen
