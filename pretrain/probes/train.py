"""Trains a small model on a probe and scores it; everything follows from the settings and the seed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig
from model.lm import LanguageModel
from model.loss import IGNORE
from model.params import count_parameters
from pretrain.probes.tasks import Task

SOLVED = 0.99
"""Accuracy on a fresh batch at which training ends early, at every training length."""

TRAIN, TEST = 0, 1
"""Streams of random draws: no row of a test comes from the generator of a training."""


@dataclass(frozen=True)
class Settings:
    """How a model is trained.

    Attributes:
        steps: optimizer steps, at most.
        batch: rows of a step.
        rates: learning rates; the best by the first test length's accuracy counts.
        seeds: of weights and data, one run each.
        test_rows: rows of a test at each length.
        weight_decay: AdamW's, on matrices.
        warmup: share of the steps over which the rate rises; a cosine to 0 follows.
        check_every: steps between looks whether it is solved.
    """

    steps: int = 400
    batch: int = 64
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    seeds: tuple[int, ...] = (0,)
    test_rows: int = 256
    weight_decay: float = 0.1
    warmup: float = 0.1
    check_every: int = 50


@dataclass(frozen=True)
class Score:
    """What a model reached on a probe.

    Attributes:
        model: its name as given.
        task: the probe's name.
        accuracy: share of right answers by test length, the mean over seeds at the best rate.
        chance: that of a guess.
        rate: the best learning rate.
        by_rate: accuracy at the first test length of every rate, the mean over seeds.
        steps: steps that the best rate took, the mean over seeds.
        parameters: of the model.
        seconds: wall time of all its runs.
    """

    model: str
    task: str
    accuracy: dict[int, float]
    chance: float
    rate: float
    by_rate: dict[float, float]
    steps: float
    parameters: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def score(
    name: str, config: ModelConfig, task: Task, settings: Settings, tell: Callable[[str], None] = lambda words: None
) -> Score:
    """Train at every rate and seed, and test the best rate at every length; `tell` gets a line a run."""
    started = time.perf_counter()
    runs: dict[float, list[tuple[dict[int, float], int]]] = {}
    for rate in settings.rates:
        for seed in settings.seeds:
            model, steps = fit(config, task, replace(settings, rates=(rate,), seeds=(seed,)))
            accuracy = evaluate(model, task, settings.test_rows, seed)
            runs.setdefault(rate, []).append((accuracy, steps))
            shown = ", ".join(f"{value:.3f} at {length}" for length, value in accuracy.items())
            tell(f"{task.name}, {name}, rate {rate:g}, seed {seed}: {shown} after {steps} steps")
    first = task.test_lengths[0]
    by_rate = {rate: _mean(accuracy[first] for accuracy, _ in found) for rate, found in runs.items()}
    best = max(by_rate, key=lambda rate: by_rate[rate])
    return Score(
        model=name,
        task=task.name,
        accuracy={length: _mean(accuracy[length] for accuracy, _ in runs[best]) for length in task.test_lengths},
        chance=task.chance,
        rate=best,
        by_rate=by_rate,
        steps=_mean(steps for _, steps in runs[best]),
        parameters=count_parameters(config)["total"],
        seconds=time.perf_counter() - started,
    )


def fit(config: ModelConfig, task: Task, settings: Settings) -> tuple[LanguageModel, int]:
    """Train with the first rate and seed; returns the model in evaluation mode, and the steps that it took."""
    (rate, *_), (seed, *_) = settings.rates, settings.seeds
    torch.manual_seed(seed)
    model = LanguageModel(config)
    groups = [
        {"params": [p for _, p in group.parameters], "weight_decay": settings.weight_decay * group.decay}
        for group in model.parameter_groups()
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    generator = np.random.default_rng((TRAIN, seed))
    for step in range(settings.steps):
        if step and step % settings.check_every == 0 and _solved(model, task, generator, settings.batch):
            return model.eval(), step
        for group in optimizer.param_groups:
            group["lr"] = rate * _schedule(step, settings)
        model.begin_step(step)
        tokens, labels = _tensors(task.draw(generator, settings.batch, task.lengths[step % len(task.lengths)]))
        loss = model(tokens, labels=labels) / (labels != IGNORE).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval(), settings.steps


def evaluate(model: LanguageModel, task: Task, rows: int, seed: int) -> dict[int, float]:
    """Accuracy at every test length, on rows that training does not draw."""
    generator = np.random.default_rng((TEST, seed))
    return {length: _accuracy(model, task.test_rows(generator, rows, length)) for length in task.test_lengths}


def _solved(model: LanguageModel, task: Task, generator: np.random.Generator, rows: int) -> bool:
    model.eval()
    accuracies = [_accuracy(model, task.draw(generator, rows, length)) for length in task.lengths]
    model.train()
    return min(accuracies) >= SOLVED


@torch.no_grad()
def _accuracy(model: LanguageModel, drawn: tuple[np.ndarray, np.ndarray]) -> float:
    """Share of labels that are the likeliest token."""
    right = total = 0
    for tokens, labels in _batches(drawn):
        counts = labels != IGNORE
        right += int((model(tokens).argmax(-1) == labels)[counts].sum())
        total += int(counts.sum())
    return right / max(1, total)


def _batches(drawn: tuple[np.ndarray, np.ndarray], rows: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    tokens, labels = _tensors(drawn)
    return zip(tokens.split(rows), labels.split(rows), strict=True)


def _tensors(drawn: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(drawn[0]), torch.from_numpy(drawn[1])


def _schedule(step: int, settings: Settings) -> float:
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.steps - warmup)))


def _mean(values: Iterator[float] | Sequence[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
