"""The learning rate: a pure function of the step and of the validation losses so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pretrain.config import OptimConfig


def learning_rate(optim: OptimConfig, step: int, steps: int, validation: Sequence[float] = ()) -> float:
    """The rate of step `step` (0-based) out of `steps`.

    Linear warm-up to the peak, then a cosine to `final_ratio` of it, or the peak times the factor of every
    cut on the plateaus of `validation` (losses in order), or the peak. A resumed run needs no scheduler state.
    """
    schedule = optim.schedule
    if step < schedule.warmup_steps:
        return optim.lr * (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return optim.lr
    if schedule.kind == "plateau":
        cuts = plateau_cuts(validation, schedule.plateau_patience)
        return optim.lr * max(schedule.plateau_factor**cuts, schedule.final_ratio)
    span = max(1, steps - 1 - schedule.warmup_steps)
    progress = min(1.0, (step - schedule.warmup_steps) / span)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return optim.lr * (schedule.final_ratio + (1.0 - schedule.final_ratio) * cosine)


def plateau_cuts(losses: Sequence[float], patience: int, threshold: float = 1e-4) -> int:
    """How often ReduceLROnPlateau has cut after these losses (mode "min", relative threshold, no cooldown)."""
    best, waited, cuts = math.inf, 0, 0
    for loss in losses:
        if loss < best * (1.0 - threshold):
            best, waited = loss, 0
        else:
            waited += 1
        if waited > patience:
            cuts, waited = cuts + 1, 0
    return cuts
