"""SIGKILL to all ranks at random moments: each restart goes on, and in the end nothing is different."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cluster.local import LocalJob
from pretrain.checkpoint import newest
from pretrain.files import sha256
from tests.drills import ledger
from tests.e2e import runs
from tests.e2e.runs import training, validation, write_config

STEPS, BATCH, SEQ_LEN = 60, 8, 32
TOPICS = 4
"""Of the help, as a dataset: a run of so many steps reads it more than once."""
# Little training between many validations and checkpoints, so that kills hit all of them.
CONFIG = (
    runs.CONFIG.replace("steps: 14", f"steps: {STEPS}")
    .replace("eval: {every: 6, sequences: 16", "eval: {every: 3, sequences: 64")
    .replace("checkpoint: {every: 4", "checkpoint: {every: 2")
)


@dataclass
class Kills:
    """What the kills did."""

    kills: int = 0
    runs: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    """Kills by what rank 0 was doing."""
    failed_restarts: int = 0
    different: list[str] = field(default_factory=list)
    """What was not as in the run that nobody disturbed."""
    seconds: float = 0.0
    epochs: float = 0.0
    """That each run reads."""


def drill(folder: Path, dataset: Path, wanted: int, seed: int = 0, longest_s: float = 9.0) -> Kills:
    """Kills runs of two ranks `wanted` times, and compares each that reaches its end with an undisturbed one.

    The dataset is small enough that each run reads it more than once.
    """
    chance, found, began = random.Random(seed), Kills(), time.monotonic()
    reference = folder / "reference"
    config = write_config(folder, dataset, reference, CONFIG)
    if _start(reference, config).wait() != 0:
        raise RuntimeError("the undisturbed run failed")
    epoch = ledger.epoch(dataset, SEQ_LEN, BATCH)
    found.epochs = STEPS * BATCH / epoch
    while found.kills < wanted:
        run = folder / f"run-{found.runs}"
        while True:
            job = _start(run, config, f"run_dir={run}")
            with job:
                ended = _wait(job, chance.uniform(0.5, longest_s) if found.kills < wanted else 1e9)
                if ended is None:
                    found.phases[_phase(run)] += 1
                    found.kills += 1
                    continue
            if ended != 0:
                found.failed_restarts += 1
            break
        found.runs += 1
        found.different += _differences(run, reference)
        lost = ledger.problems(run / "ledger", dataset, STEPS, BATCH, epoch)
        found.different += [f"{run.name}: {problem}" for problem in lost]
    found.seconds = time.monotonic() - began
    return found


def _start(run: Path, *arguments: object) -> LocalJob:
    """Two ranks that keep a ledger."""
    os.environ[ledger.LEDGER] = str(run / "ledger")
    command = [sys.executable, "-m", "tests.drills.ledger", "train", *map(str, arguments)]
    return LocalJob(command, 2, run / "logs")


def _wait(job, seconds: float) -> int | None:
    """The job's exit code, or None after so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        code = job.poll()
        if code is not None:
            return code
        time.sleep(0.01)
    return None


def _phase(run: Path) -> str:
    starts = sorted(path.stem for path in (run / "generations").glob("*.json"))
    if starts and any((run / "checkpoints").glob(f".writing-{starts[-1]}-*")):  # not what an earlier start left
        return "while a checkpoint is written"
    try:
        phase = json.loads((run / "heartbeats" / "rank-0.json").read_text())["phase"]
    except (OSError, ValueError, KeyError):
        return "before the ranks have met"
    return {"start": "at the start", "train": "in a step", "save": "in a snapshot", "validate": "in a validation"}.get(
        phase, phase
    )


def _differences(run: Path, reference: Path) -> list[str]:
    found = []
    if training(run) != training(reference):
        found.append(f"{run.name}: losses, norms or rates of the steps")
    if validation(run) != validation(reference):
        found.append(f"{run.name}: validation losses")
    ours, theirs = newest(run / "checkpoints"), newest(reference / "checkpoints")
    if sha256(ours.weights) != sha256(theirs.weights):
        found.append(f"{run.name}: the final weights")
    if ours.info().state.sequences != theirs.info().state.sequences:
        found.append(f"{run.name}: the position in the data")
    return found
