"""SIGKILL to all ranks at random moments: each restart goes on, and in the end nothing is different."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.checkpoint import newest
from pretrain.files import sha256
from tests.e2e import runs
from tests.e2e.runs import start, training, validation, write_config

# Little training between many validations and checkpoints, so that kills hit all of them.
CONFIG = (
    runs.CONFIG.replace("steps: 14", "steps: 60")
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


def drill(folder: Path, dataset: Path, wanted: int, seed: int = 0, longest_s: float = 9.0) -> Kills:
    """Kills runs of two ranks `wanted` times, and compares each that reaches its end with an undisturbed one."""
    chance, found, began = random.Random(seed), Kills(), time.monotonic()
    reference = folder / "reference"
    config = write_config(folder, dataset, reference, CONFIG)
    if start(reference, config).wait() != 0:
        raise RuntimeError("the undisturbed run failed")
    while found.kills < wanted:
        run = folder / f"run-{found.runs}"
        while True:
            job = start(run, config, f"run_dir={run}")
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
    found.seconds = time.monotonic() - began
    return found


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
