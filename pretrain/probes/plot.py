"""A picture of probe scores: one group of bars a task and test length, one bar a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from pretrain.probes.train import Score


def draw(scores: Sequence[Score], path: Path) -> None:
    """Write the accuracies as a PNG; a short line is the accuracy of a guess."""
    models = list(dict.fromkeys(score.model for score in scores))
    groups = list(dict.fromkeys((s.task, length) for s in scores for length in s.accuracy))
    figure = Figure(figsize=(max(6.0, 1.5 * len(groups)), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(models)
    for index, model in enumerate(models):
        found = {(s.task, length): value for s in scores if s.model == model for length, value in s.accuracy.items()}
        middles = [groups.index(group) + (index - (len(models) - 1) / 2) * width for group in found]
        axes.bar(middles, list(found.values()), width, color=f"C{index % 10}", label=model)
    for place, (task, _) in enumerate(groups):
        chance = next(s.chance for s in scores if s.task == task)
        axes.hlines(chance, place - 0.45, place + 0.45, color="black", lw=1)
    axes.set_xticks(range(len(groups)), [f"{task}\n{length} tokens" for task, length in groups], fontsize=8)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("accuracy (line: a guess)")
    axes.legend(frameon=False, fontsize=8, ncols=min(4, len(models)), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
