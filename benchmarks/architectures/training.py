"""Trains a contestant by `pha train` and reads what the run recorded."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from benchmarks.architectures.contestants import Contestant
from benchmarks.process import ROOT, call
from pretrain import metrics
from pretrain.rundir import RunDirectory

PROTOCOL = ROOT / "configs" / "compare.yaml"


@dataclass(frozen=True)
class Training:
    """One run.

    Attributes:
        run: its directory.
        tokens_per_s: the median over all steps but the first, which allocates.
        peak_memory: the most that the process held [bytes], all libraries included.
        losses: of every step [nats per token].
        validation: loss on the validation split after the last step [nats per token].
        bits_per_byte: the same per byte of text.
    """

    run: Path
    tokens_per_s: float
    peak_memory: int
    losses: list[float]
    validation: float
    bits_per_byte: float


def train(
    contestant: Contestant, data: Path, work: Path, length: int, tokens: int, steps: int | None, sequences: int | None
) -> Training:
    """Train at `length` tokens a sequence, `tokens` a step.

    Args:
        contestant: what to train.
        data: the dataset.
        work: where the run's directory is made.
        length, tokens: both in tokens; `length` divides `tokens`.
        steps: None is the protocol's.
        sequences: to validate on; None is the protocol's.

    Raises:
        BenchError: the command fails.
    """
    run = work / f"{contestant.folder}-{length}"
    changes = [
        *contestant.overrides,
        f"run_dir={run}",
        f"data.path={data}",
        f"data.seq_len={length}",
        f"train.global_batch={tokens // length}",
        *([f"train.steps={steps}"] if steps else []),
        *([f"eval.sequences={sequences}"] if sequences else []),
    ]
    call("pretrain.cli", "train", str(PROTOCOL), *changes)
    records = metrics.read(RunDirectory(run).metrics)
    steps_done, checks = metrics.of_kind(records, "train"), metrics.of_kind(records, "validation")
    return Training(
        run=run,
        tokens_per_s=statistics.median(record["tokens_per_s"] for record in steps_done[1:]),
        peak_memory=max(record["peak_memory"] for record in steps_done),
        losses=[record["loss"] for record in steps_done],
        validation=checks[-1]["loss"],
        bits_per_byte=checks[-1]["bits_per_byte"],
    )
