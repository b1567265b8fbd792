"""Steps that must not be taken: what is not finite, and losses that leave their recent range.

Every rank judges the same agreed loss with the same history, so all come to the same verdict; the history is part of
the run's state, so a resumed run judges as the uninterrupted one.
"""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Collection

from pretrain.config import GuardConfig
from pretrain.state import GuardState


class Verdict(enum.Enum):
    """What to do with a step whose gradients are there."""

    TAKE = "take"
    NONFINITE = "nonfinite"
    """The loss or the gradient is not finite: the update is left out."""
    SPIKE = "spike"
    """The loss is far above the recent ones: the update is left out, or the run rolled back, by policy."""


class Guard:
    """Judges losses against the window of those that were accepted."""

    def __init__(self, config: GuardConfig, state: GuardState, changes: Collection[int] = ()) -> None:
        """`changes`: the steps (from 0) with which the losses are of other data, longer sequences or larger batches."""
        self.config, self.state, self._changes = config, state, frozenset(changes)

    def begin_step(self, step: int) -> None:
        """Forgets the losses where, by the config, the data changes with this step: a rise is then no spike."""
        if step in self._changes:
            self.state.losses = []

    def judge(self, loss: float) -> Verdict:
        """The verdict on a step's loss; `settle` must follow.

        A spike is a loss more than `deviations` standard deviations above the mean of the last `window` accepted ones,
        once half of the window is full.
        """
        if not math.isfinite(loss):
            return Verdict.NONFINITE
        recent = self.state.losses
        if self.config.spike == "off" or len(recent) < max(2, self.config.window // 2):
            return Verdict.TAKE
        mean, deviation = statistics.fmean(recent), statistics.pstdev(recent)
        above = loss > mean + self.config.deviations * max(deviation, 1e-3 * abs(mean))  # a flat curve has a spread too
        return Verdict.SPIKE if above else Verdict.TAKE

    def settle(self, verdict: Verdict, loss: float) -> None:
        """Takes note of what became of the step."""
        if verdict is Verdict.TAKE:
            self.state.in_a_row = 0
            if self.config.spike != "off":
                self.state.losses = [*self.state.losses, loss][-self.config.window :]
        else:
            self.state.in_a_row += 1
            self.state.skipped += 1

    @property
    def exhausted(self) -> bool:
        """Whether more steps in a row were left out than leaving out can mend."""
        return self.state.in_a_row > self.config.max_skips

    def wants_rollback(self, verdict: Verdict) -> bool:
        """Whether policy and budget send the run back to its last checkpoint now."""
        due = verdict is Verdict.SPIKE or self.exhausted
        return due and self.config.spike == "rollback" and self.state.rollbacks < self.config.rollbacks
