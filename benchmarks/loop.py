"""What the training loop costs beside a bare one, what a checkpoint costs, and how long a start takes.

    python -m benchmarks.loop DATASET [--steps 60] [--rounds 3] [--write docs/reliability.md] [--json]

- Loop: `pha train` of the demo's model on one process, with DeepSpeed, logging, guards, watchdog, agreements and
  records, beside a loop of ten lines on the same model, optimizer and batches. Both run in one process, a step of the
  one and then a step of the other, because whole programs differ more on this kind of machine than the loops do. Ours
  counts all time from the end of a bare step to the beginning of the next one.
- Checkpoint: how long training waits for one, in those runs, behind and before the training.
- Start: from the birth of the process to the end of the first step, by phase, when two ranks resume.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
from pretrain.errors import EXIT_DONE
from pretrain.loop import StepResult, Trainer
from pretrain.markdown import check_section, write_section
from pretrain.optim import parameter_groups
from pretrain.run import train
from pretrain.schedule import learning_rate
from pretrain.state import DataState

SECTION = "benchmarks/loop.py"
CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"
WARMUP = 5
LOGGED_EVERY = 5
"""As in the demo's own config."""


def settings(dataset: Path, run: Path, steps: int) -> list[str]:
    """Overrides of the demo's config."""
    quiet = ("eval.every=0", "logging.wandb=disabled", "logging.every=1", "logging.sample_tokens=0")
    return [f"data.path={dataset}", f"run_dir={run}", f"train.steps={steps}", *quiet]


def bare(config: RunConfig) -> Iterator[float]:
    """A loop with nothing around it: the seconds of each step."""
    corpus = Corpus.open(config.data.paths)
    config = resolve(config, corpus)
    torch.manual_seed(config.train.seed)
    model = LanguageModel(config.model)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.optim), betas=config.optim.betas, fused=True)
    stream = data_plan.stream(config, corpus, DataState())
    with Loader(stream, global_batch=config.batches) as loader:
        for step in itertools.count():
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
            yield time.perf_counter() - began


def alternating(config: RunConfig) -> dict[str, list[float]]:
    """Seconds of the steps of `pha train` and of the bare loop, in turn in this process."""
    found: dict[str, list[float]] = {"ours": [], "bare": []}
    other = bare(config)
    step, since = Trainer._step, 0.0

    def in_turn(trainer: Trainer) -> StepResult:
        nonlocal since
        if since:
            found["ours"].append(time.perf_counter() - since)
        found["bare"].append(next(other))
        since = time.perf_counter()
        return step(trainer)

    Trainer._step = in_turn  # type: ignore[method-assign,assignment]
    try:
        if train(config) != EXIT_DONE:
            raise RuntimeError("the run did not reach its last step")
    finally:
        Trainer._step = step  # type: ignore[method-assign]
    return {how: seconds[WARMUP : len(found["ours"])] for how, seconds in found.items()}


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
    found: dict[str, Any] = {"machine": describe(), "loops": [], "stall": {"behind": [], "before": []}}
    plain = ["train.recompute.mode=none", "checkpoint.every=100000", f"logging.every={LOGGED_EVERY}"]
    with tempfile.TemporaryDirectory(prefix="loop-") as name:
        for number in range(rounds):
            run = Path(name) / f"loop-{number}"
            overrides = [*settings(dataset, run, steps), *plain]
            command = [sys.executable, "-m", "benchmarks.loop", str(dataset), "--in-turn", *overrides]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found["loops"].append(json.loads(printed.splitlines()[-1]))
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
    loop = Table(
        "A step of the demo's model on one process, both loops step by step in turn",
        ("process", "steps of each", "pha train, median s", "bare PyTorch, median s", "ratio of the sums"),
    )
    ratios = []
    for number, one in enumerate(found["loops"], start=1):
        ours_s, bare_s = statistics.median(one["ours"]), statistics.median(one["bare"])
        ratios.append(sum(one["ours"]) / sum(one["bare"]))  # steps that write a record included
        loop.rows.append([str(number), str(len(one["ours"])), f"{ours_s:.4f}", f"{bare_s:.4f}", f"{ratios[-1]:.3f}"])
    pairs = [a / b for one in found["loops"] for a, b in zip(one["ours"], one["bare"], strict=True)]
    loop.remarks.append(
        f"{machine['cores']} cores of {machine['processor']}. Median of the processes' ratios: "
        f"{statistics.median(ratios):.3f}; of all {len(pairs)} pairs of neighbouring steps: "
        f"{statistics.median(pairs):.3f}."
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
    parser.add_argument("--in-turn", nargs="*", help="one process of the loops' comparison, with these overrides")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.in_turn is not None:
        print(json.dumps(alternating(config_file.load(CONFIG, options.in_turn))))
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
