"""The training loop: read it first. It does no I/O; what a moment needs done is a named hook."""

from __future__ import annotations

import contextlib
import enum
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from data_pipeline.batch import Batch
from data_pipeline.loader import Loader
from pretrain.config import RunConfig
from pretrain.data import to_device
from pretrain.distributed import Ranks
from pretrain.engine import Engine
from pretrain.errors import RunFailed
from pretrain.guards import Guard, Verdict
from pretrain.metrics import Throughput
from pretrain.own_time import OwnTime
from pretrain.schedule import learning_rate
from pretrain.signals import StopFlag
from pretrain.state import TrainState


class Outcome(enum.Enum):
    """Why the loop ended."""

    DONE = "done"
    STOPPED = "stopped"


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step was."""

    loss: float
    """Mean cross-entropy over the global batch's valid tokens [nats]."""
    grad_norm: float
    learning_rate: float
    tokens: int
    stop: bool
    """Some rank was asked to stop."""
    verdict: Verdict = Verdict.TAKE
    """Whether the weights were changed, or why not."""
    save: bool = False
    """So long has passed since the last checkpoint that one is due."""
    rollback: bool = False
    """The run goes back to its last checkpoint now."""
    compute_s: float | None = None
    """This rank's own forward passes [s], before it met the others; None where it meets them in those (ZeRO 3)."""


class Hooks(Protocol):
    """What the loop asks for at its moments; all are collective."""

    def after_step(self, result: StepResult, throughput: Throughput) -> None:
        """A step is done and counted."""

    def validate(self) -> bool:
        """Validation is due; appends to `state.validation`. False when a stop cut it short."""

    def save(self) -> None:
        """A checkpoint is due."""

    def roll_back(self) -> Loader | None:
        """Brings weights and state back to the last checkpoint, and the data to what follows the batch just read.

        None where there is nothing to go back to: the step was left out, and the run goes on.
        """


class Trainer:
    """Runs optimizer steps from the state's position to the last."""

    def __init__(
        self,
        config: RunConfig,
        ranks: Ranks,
        engine: Engine,
        loader: Loader,
        state: TrainState,
        hooks: Hooks,
        stop: StopFlag,
        micro_batch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`micro_batch`: sequences of one forward pass on this rank."""
        self.config, self.ranks, self.engine, self.loader = config, ranks, engine, loader
        self.state, self.hooks, self.stop, self.micro_batch = state, hooks, stop, micro_batch
        self.throughput = Throughput()
        self.guard = Guard(config.guards, state.guard, config.data_changes)
        self.clock, self._saved_at = clock, clock()
        self._own = OwnTime(engine.device) if engine.zero_stage < 3 else None

    def run(self) -> Outcome:
        """Trains to the last step, validates and saves; or saves and returns early when a rank is asked to stop."""
        state, last_step = self.state, self.config.train.steps
        while state.step < last_step:
            stop = timed = False
            if self._validation_due():  # after a stop that cut the last validation short
                stop = not self.hooks.validate()
            if not stop:
                result = self._step()
                self.hooks.after_step(result, self.throughput)
                stop, timed = result.stop, result.save
                if result.rollback and (loader := self.hooks.roll_back()) is not None:
                    self.loader = loader
                    continue
                if self._validation_due() and not stop:
                    stop = not self.hooks.validate()
            if stop or timed or state.step == last_step or state.step % self.config.checkpoint.every == 0:
                self._save()
            if stop:
                return Outcome.STOPPED
        if self._validation_due() and self.hooks.validate():
            self._save()
        return Outcome.DONE

    def _save(self) -> None:
        self.hooks.save()
        self._saved_at = self.clock()

    def _time_is_up(self) -> bool:
        """By the main rank's clock: the others' may tell otherwise."""
        minutes = self.config.checkpoint.minutes
        return self.ranks.world.is_main and minutes is not None and self.clock() - self._saved_at >= 60 * minutes

    def _validation_due(self) -> bool:
        step, every = self.state.step, self.config.eval.every
        due = step == self.config.train.steps or (every > 0 and step > 0 and step % every == 0)
        return due and self.state.validated_at != step

    def _step(self) -> StepResult:
        state = self.state
        self.throughput.start()
        waited_before = self.loader.wait_seconds
        batch = next(self.loader)
        tokens, stop, timed = self.ranks.sum(batch.predictions, bool(self.stop), self._time_is_up())
        # Dropout is a function of (seed, step, rank): a resumed run needs no saved generator states.
        torch.manual_seed(step_seed(self.config.train.seed, state.step, self.ranks.world.rank))

        self.engine.begin_step(state.step)
        self.guard.begin_step(state.step)
        loss_sum = self._accumulate(batch, tokens)
        (total,) = self.ranks.sum(loss_sum)
        loss = total / max(tokens, 1.0)
        rate = learning_rate(self.config.optim, state.step, self.config.train.steps, state.validation)
        verdict, norm = self._update(loss, rate)
        rollback = self.guard.wants_rollback(verdict)
        if self.guard.exhausted and not rollback:
            raise RunFailed(
                f"The loss of step {state.step + 1} is {loss} (gradient norm {norm}), and {state.guard.in_a_row} steps "
                "in a row were left out, which more of them will not mend; the last checkpoint is untouched: lower "
                "optim.lr or set optim.clip, and start the run again."
            )
        state.step += 1
        state.sequences = self.loader.sequences_consumed
        state.tokens += int(tokens)
        self.throughput.stop(tokens, self.loader.wait_seconds - waited_before)
        own = self._own.reading() if self._own is not None else None
        return StepResult(loss, norm, rate, int(tokens), stop > 0, verdict, timed > 0, rollback, own)

    def _update(self, loss: float, rate: float) -> tuple[Verdict, float]:
        """Changes the weights, unless the guard or the gradient forbids it; the norm before clipping."""
        verdict = self.guard.judge(loss)
        # Where the norm is not finite the engine leaves the weights alone by itself.
        norm = self.engine.step(rate, discard=verdict is not Verdict.TAKE)
        if verdict is Verdict.TAKE and not math.isfinite(norm):
            verdict = Verdict.NONFINITE
        self.guard.settle(verdict, loss)
        return verdict, norm

    def _accumulate(self, batch: Batch, global_tokens: float) -> float:
        """Forward and backward over this rank's micro-batches; returns its summed loss."""
        tokens, labels, documents = to_device(batch, self.engine.device)
        total = torch.zeros((), dtype=torch.float64, device=self.engine.device)
        for rows in torch.arange(len(tokens)).split(self.micro_batch):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            with self._own or contextlib.nullcontext():
                loss = self.engine.loss_sum(tokens[part], labels[part], documents[part])
            self.engine.backward(loss, global_tokens)
            total += loss.detach().double()
        return float(total)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a rank's random draws in one step."""
    return ((seed * 1_000_003 + step) * 65_537 + rank) % 2**63
