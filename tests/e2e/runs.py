"""Starting real runs from tests: the command line, on one or two ranks, on a tiny model."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from cluster.local import LocalJob
from pretrain import metrics

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
model: {preset: pha-nano, dropout: 0.1}
data: {seq_len: 32}
optim: {lr: 3.0e-3, schedule: {warmup_steps: 3}}
train: {steps: 14, global_batch: 8, micro_batch: 2, zero_stage: 2, threads: 1, timeout_s: 120}
eval: {every: 6, sequences: 16, batch: 4}
checkpoint: {every: 4, keep: 2}
logging: {every: 1, wandb: disabled}
"""

MIXED = """
model: {{preset: pha-nano, dropout: 0.1}}
data:
  mixture:
    datasets: {{a: {a}, b: {b}}}
    weights: [{{from_step: 0, weights: {{a: 3, b: 1}}}}, {{from_step: 5, weights: {{a: 1, b: 1}}}}]
  seq_len: [{{from_step: 0, value: 16}}, {{from_step: 6, value: 32}}]
optim: {{lr: 3.0e-3, schedule: {{warmup_steps: 3}}}}
train:
  steps: 10
  global_batch: [{{from_step: 0, value: 4}}, {{from_step: 4, value: 8}}]
  micro_batch: 2
  threads: 1
  timeout_s: 120
eval: {{every: 5, sequences: 8, batch: 4}}
checkpoint: {{every: 3, keep: 2}}
logging: {{every: 1, wandb: disabled}}
"""


def write_config(folder: Path, dataset: Path, run: Path, text: str = CONFIG) -> Path:
    """A config file for a tiny run."""
    path = folder / "run.yaml"
    path.write_text(f"{text}\nrun_dir: {run}\n".replace("data: {", f"data: {{path: {dataset}, "))
    return path


def command(*arguments: object) -> list[str]:
    """`pha ...` in this interpreter."""
    return [sys.executable, "-m", "pretrain.cli", *map(str, arguments)]


def pha(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs `pha ...` to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=ROOT, timeout=300, **options)


def start(run: Path, *arguments: object, ranks: int = 2) -> LocalJob:
    """Starts `pha train ...` on local ranks."""
    return LocalJob(command("train", *arguments), ranks, run / "logs")


def training(run: Path) -> dict[int, tuple[float, float, float]]:
    """step → (loss, gradient norm, learning rate), as recorded."""
    records = metrics.of_kind(metrics.read(run / "metrics.jsonl"), "train")
    return {r["step"]: (r["loss"], r["grad_norm"], r["lr"]) for r in records}


def validation(run: Path) -> dict[int, float]:
    """step → validation loss, as recorded."""
    return {r["step"]: r["loss"] for r in metrics.of_kind(metrics.read(run / "metrics.jsonl"), "validation")}


def wait_for(job: LocalJob, condition, seconds: float = 120.0) -> None:
    """Waits until the condition holds while the job runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert job.poll() is None, "the run ended before the moment that the test waits for"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)
