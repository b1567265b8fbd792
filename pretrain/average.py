"""The mean of a run's best checkpoints, which often predicts better than any of them.

Stochastic weight averaging (arXiv 1803.05407) as arXiv 2606.16093 uses it: of the five checkpoints with the lowest
validation losses the best three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrain.checkpoint import Checkpoint, CheckpointStore
from pretrain.errors import RunError
from pretrain.evaluate import Evaluation
from pretrain.files import sync, write_json
from pretrain.inference import Trained, load
from pretrain.rundir import RunDirectory

WEIGHTS, SOURCES = "averaged.safetensors", "averaged.json"


@dataclass(frozen=True)
class Average:
    """What `average` made."""

    path: Path
    steps: list[int]
    evaluations: dict[str, Evaluation]
    """`average`, and `step N` of each checkpoint in it, best first."""


def average(run: Path, best: int, split: str = "validation", sequences: int | None = None) -> Average:
    """Averages the `best` checkpoints of a run by validation loss, writes `averaged.safetensors`, and evaluates all.

    Raises RunError when the run has not so many checkpoints with a validation loss.
    """
    directory = RunDirectory(run)
    directory.read_config()
    chosen = _best(directory, best)
    weights = mean_weights([checkpoint.weights for checkpoint in chosen])
    path = directory.path / WEIGHTS
    temporary = path.with_name(f".{path.name}")
    save_file(weights, temporary)
    sync(temporary)
    temporary.replace(path)
    write_json(directory.path / SOURCES, {"steps": [checkpoint.step for checkpoint in chosen]})
    trained = load(run, chosen[0].step)
    found = {}
    for name, state in (("average", weights), *((f"step {c.step}", load_file(c.weights)) for c in chosen)):
        found[name] = _evaluate(trained, state, split, sequences)
    return Average(path, [checkpoint.step for checkpoint in chosen], found)


def mean_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of each weight over the files, summed in float64, in the weights' own dtype. Raises RunError."""
    with safe_open(files[0], framework="pt") as first:
        names = list(first.keys())
    totals: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for path in files:
        with safe_open(path, framework="pt") as weights:
            if set(weights.keys()) != set(names):
                raise RunError(f"{path} and {files[0]} are of different models; average checkpoints of one run.")
            for name in names:
                value = weights.get_tensor(name)
                dtypes[name] = value.dtype
                totals[name] = totals[name] + value.double() if name in totals else value.double()
    return {name: (total / len(files)).to(dtypes[name]) for name, total in totals.items()}


def _best(directory: RunDirectory, wanted: int) -> list[Checkpoint]:
    known = []
    for checkpoint in CheckpointStore(directory.checkpoints).all():
        loss = None if checkpoint.problems() else checkpoint.info().validation_loss
        if loss is not None:
            known.append((loss, checkpoint.step, checkpoint))
    if len(known) < wanted:
        raise RunError(
            f"{directory.path} has {len(known)} complete checkpoint(s) with a validation loss, and {wanted} are "
            "wanted; ask for fewer with --best, or train with eval.every a multiple of checkpoint.every and "
            "checkpoint.keep_best=5."
        )
    return [checkpoint for _, _, checkpoint in sorted(known, key=lambda entry: entry[:2])[:wanted]]


def _evaluate(trained: Trained, weights: dict[str, Tensor], split: str, sequences: int | None) -> Evaluation:
    trained.model.load_state_dict(weights)
    return trained.evaluate(split, sequences)
