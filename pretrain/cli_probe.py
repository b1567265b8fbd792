"""`pha probe`: small synthetic tasks, the same for every architecture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from pretrain.cli_output import print_json, print_table
from pretrain.errors import RunError
from pretrain.probes import models
from pretrain.probes.plot import draw
from pretrain.probes.tasks import TASKS, Task, find
from pretrain.probes.train import Score, Settings, score


def run_probes(
    specs: Sequence[str],
    tasks: Sequence[str],
    width: int,
    layers: int,
    settings: Settings,
    threads: int | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Trains, scores and prints; the arguments are the command's.

    Raises RunError for an unknown model, task or setting, before anything is trained.
    """
    overrides = [spec for spec in specs if "=" in spec.partition(":")[0]]
    named = [spec for spec in specs if spec not in overrides]
    if not named:
        raise RunError("Name at least one architecture or preset, for example `pha probe transformer mamba2`.")
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = [find(task) for task in tasks or TASKS]
    configs = {
        (spec, t.name): models.resolve(spec, overrides, width, layers, t.vocab) for t in chosen for spec in named
    }
    scores = []
    for task in chosen:
        for spec in named:
            scores.append(score(spec, configs[spec, task.name], task, settings, _tell))
    if plot is not None:
        draw(scores, plot)
    if as_json:
        print_json({"settings": vars(settings), "overrides": overrides, "scores": [s.as_dict() for s in scores]})
        return
    for task in chosen:
        _table(task, [s for s in scores if s.task == task.name])


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _table(task: Task, scores: Sequence[Score]) -> None:
    columns = (
        "model",
        "parameters",
        *(f"at {length} tokens" for length in task.test_lengths),
        "rate",
        "steps",
        "seconds",
    )
    rows = [
        (
            s.model,
            f"{s.parameters:,}",
            *(f"{value:.3f}" for value in s.accuracy.values()),
            f"{s.rate:g}",
            f"{s.steps:,.0f}",
            f"{s.seconds:,.0f}",
        )
        for s in scores
    ]
    lengths = ", ".join(map(str, task.lengths))
    print_table(f"{task.name}: {task.about}; trained at {lengths} tokens, a guess has {task.chance:.3f}", columns, rows)
