"""What the training loop costs beside a bare one, what a checkpoint costs, and how long a start takes.

    python -m benchmarks.loop DATASET [--steps 60] [--rounds 3] [--write docs/reliability.md] [--json]

- Loop: `pha train` of the demo's model on one process, with logging, guards, watchdog, agreements and records, beside a
  loop of ten lines on the same model, optimizer and batches; whole programs in turn, wall time of a step from the
  fifth on.
- Checkpoint: how long training waits for one, in those runs, behind and before the training.
- Start: from the birth of the process to the end of the first step, by phase, when two ranks resume.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe
from benchmarks.tables import Table
from data_pipeline.corpus import Corpus
from data_pipeline.loader import Loader
from model.lm import LanguageModel
from pretrain import config_file, data_plan, metrics
from pretrain.config import RunConfig
from pretrain.data import resolve, to_device
from pretrain.hardware import keep_memory
from pretrain.markdown import check_section, write_section
from pretrain.optim import parameter_groups
from pretrain.schedule import learning_rate
from pretrain.state import DataState

SECTION = "benchmarks/loop.py"
CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"
WARMUP = 5


def settings(dataset: Path, run: Path, steps: int) -> list[str]:
    """Overrides of the demo's config."""
    quiet = ("eval.every=0", "logging.wandb=disabled", "logging.every=1", "logging.sample_tokens=0")
    return [f"data.path={dataset}", f"run_dir={run}", f"train.steps={steps}", *quiet]


def bare(config: RunConfig) -> float:
    """Median seconds of a step of a loop with nothing around it."""
    keep_memory()
    corpus = Corpus.open(config.data.paths)
    config = resolve(config, corpus)
    torch.manual_seed(config.train.seed)
    model = LanguageModel(config.model)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.optim), betas=config.optim.betas, fused=True)
    stream = data_plan.stream(config, corpus, DataState())
    took = []
    with Loader(stream, global_batch=config.batches) as loader:
        for step in range(config.train.steps):
            began = time.perf_counter()
            batch = next(loader)
            tokens, labels, documents = to_device(batch, torch.device("cpu"))
            micro = config.train.micro_batch or len(tokens)
            for rows in torch.arange(len(tokens)).split(micro):
                (model(tokens[rows], documents[rows], labels[rows]) / batch.predictions).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config.optim, step, config.train.steps, [])
            optimizer.step()
            optimizer.zero_grad()
            took.append(time.perf_counter() - began)
    return statistics.median(took[WARMUP:])


def ours(overrides: list[str], run: Path, ranks: int = 1) -> list[metrics.Record]:
    """The records of a run of `pha train`."""
    command = [sys.executable, "-m", "pretrain.cli", "train", str(CONFIG), "--ranks", str(ranks), *overrides]
    subprocess.run(command, check=True, capture_output=True)
    return metrics.read(run / "metrics.jsonl")


def step_seconds(records: list[metrics.Record]) -> float:
    """Median wall time from one step's record to the next, whatever happened between; checkpoints left out."""
    times = {record["step"]: record["time"] for record in metrics.of_kind(records, "train")}
    saved = {record["step"] for record in records if record.get("event") == "checkpoint"}
    return statistics.median(
        times[step + 1] - times[step] for step in times if step >= WARMUP and step + 1 in times and step not in saved
    )


def measure(dataset: Path, steps: int, rounds: int) -> dict[str, Any]:
    """All three, in turn."""
    found: dict[str, Any] = {"machine": describe(), "ours": [], "bare": [], "stall": {"behind": [], "before": []}}
    plain = ["train.recompute.mode=none"]
    with tempfile.TemporaryDirectory(prefix="loop-") as name:
        for number in range(rounds):
            for how in ("ours", "bare"):
                run = Path(name) / f"{how}-{number}"
                overrides = [*settings(dataset, run, steps), *plain]
                if how == "ours":
                    found[how].append(step_seconds(ours(overrides, run)))
                else:
                    command = [sys.executable, "-m", "benchmarks.loop", str(dataset), "--bare", *overrides]
                    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    found[how].append(float(printed))
        for how, flag in (("behind", "true"), ("before", "false")):
            run = Path(name) / how
            often = [*settings(dataset, run, 40), "checkpoint.every=8", f"checkpoint.background={flag}"]
            records = ours(often, run, ranks=2)
            found["stall"][how] = [r["stall_s"] for r in records if r.get("event") == "checkpoint"]
            found["stall"]["step"] = step_seconds(records)
        found["start"] = []
        for steps_more in (41, 42, 43):
            records = ours([*settings(dataset, run, steps_more), "optim.schedule.kind=constant"], run, ranks=2)
            found["start"].append([r["seconds"] for r in records if r.get("event") == "startup"][-1])
    return found


def tables(found: dict[str, Any]) -> list[Table]:
    """For people."""
    machine = found["machine"]
    loop = Table("A step of the demo's model on one process", ("loop", "median of the rounds, s", "all rounds, s"))
    for how, name in (("ours", "pha train"), ("bare", "bare PyTorch")):
        loop.rows.append([name, f"{statistics.median(found[how]):.4f}", ", ".join(f"{s:.4f}" for s in found[how])])
    ratios = [a / b for a, b in zip(found["ours"], found["bare"], strict=True)]
    loop.remarks.append(
        f"{machine['cores']} cores of {machine['processor']}; whole programs in turn. Ratio, median of the rounds: "
        f"{statistics.median(ratios):.3f}."
    )
    stall = Table("How long training waits for a checkpoint, two ranks", ("writing", "median, s", "longest, s"))
    for how, name in (("behind", "behind the training (default)"), ("before", "before it goes on")):
        waits = found["stall"][how]
        stall.rows.append([name, f"{statistics.median(waits):.3f}", f"{max(waits):.3f}"])
    stall.remarks.append(f"A step takes {found['stall']['step']:.3f} s.")
    start = Table("From the birth of the process to the first new step, two ranks that resume", ("phase", "median, s"))
    for phase in found["start"][0]:
        start.rows.append([phase, f"{statistics.median(one[phase] for one in found['start']):.2f}"])
    start.rows.append(["all", f"{statistics.median(sum(one.values()) for one in found['start']):.2f}"])
    return [loop, stall, start]


def main() -> None:
    """Measures, and prints or writes tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", nargs="*", help="measure the bare loop alone, with these overrides")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.bare is not None:
        print(bare(config_file.load(CONFIG, options.bare)))
        return
    if options.write is not None:
        check_section(options.write, SECTION)
    found = measure(options.dataset.resolve(), options.steps, options.rounds)
    text = "\n".join(table.markdown() for table in tables(found))
    print(json.dumps(found) if options.json else text)
    if options.write is not None:
        write_section(options.write, SECTION, text)


if __name__ == "__main__":
    main()
