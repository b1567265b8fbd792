"""Where metrics are shown: the terminal and Weights & Biases."""

from __future__ import annotations

import datetime
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pretrain.config import LoggingConfig
from pretrain.metrics import Record

log = logging.getLogger(__name__)

# One console for log lines and the progress line, so that neither writes over the other.
_console = Console(stderr=True, highlight=False)


def setup_logging(folder: Path, rank: int) -> None:
    """Everything goes to `rank-N.log`; rank 0's warnings and news also to the terminal."""
    logging.raiseExceptions = False  # a line that a full disk does not take is no reason for a traceback
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    file = logging.FileHandler(folder / f"rank-{rank}.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(file)
    root.setLevel(logging.INFO)
    if rank == 0:
        terminal = RichHandler(console=_console, show_path=False, show_time=False)
        terminal.setFormatter(logging.Formatter("%(message)s"))
        root.addHandler(terminal)


class Logger(Protocol):
    """Something that shows records."""

    def log(self, record: Record) -> None:
        """Shows one record of metrics.jsonl."""

    def close(self) -> None:
        """Flushes what is left."""


class Terminal:
    """A live progress line on a terminal; a plain line a record elsewhere."""

    def __init__(self, steps: int, step: int) -> None:
        self._steps, self._live = steps, sys.stderr.isatty()
        self._validation = ""
        columns = (
            TextColumn("train"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
        )
        self._progress = Progress(*columns, console=_console, disable=not self._live)
        self._task = self._progress.add_task("train", total=steps, completed=step, line="")
        self._progress.start()

    def log(self, record: Record) -> None:
        """Shows the record's line."""
        if record["kind"] == "train":
            line = _train_line(record, self._steps) + self._validation
            self._progress.update(self._task, completed=record["step"], line=line)
            if not self._live:
                _console.print(f"step {record['step']}/{self._steps} {line}", soft_wrap=True)
        elif record["kind"] == "validation":
            self._validation = f" · validation {record['bits_per_byte']:.3f} bits/byte"
            _console.print(
                f"step {record['step']} validation: loss {record['loss']:.4f}, perplexity "
                f"{record['perplexity']:.2f}, {record['bits_per_byte']:.4f} bits per byte",
                soft_wrap=True,
            )

    def close(self) -> None:
        """Leaves the terminal as it was."""
        self._progress.stop()


class Wandb:
    """Weights & Biases: online when there is a key, offline otherwise, and it never asks."""

    def __init__(self, settings: LoggingConfig, folder: Path, name: str, run_id: str, config: dict[str, Any]) -> None:
        """Starts or continues the run `run_id` (empty: a new one)."""
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        online = settings.wandb == "auto" and bool(os.environ.get("WANDB_API_KEY"))
        mode = os.environ.get("WANDB_MODE") or ("online" if online else "offline")
        self._run = wandb.init(
            project=settings.project,
            name=name,
            id=run_id or None,
            resume="allow" if run_id else None,
            dir=folder,
            config=config,
            mode=mode,  # type: ignore[arg-type]  # what the user set; wandb refuses what it does not know
            settings=wandb.Settings(console="off", init_timeout=30),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self.run_id: str = self._run.id
        self._failed = False

    def log(self, record: Record) -> None:
        """Sends the record's numbers, named by its kind."""
        self._guarded(lambda: self._run.log({**_scalars(record), "step": record["step"]}))

    def close(self) -> None:
        """Finishes the run's files."""
        self._guarded(self._run.finish)

    def _guarded(self, action: Callable[[], object]) -> None:
        """A logger that fails is left out; it must not stop a training run."""
        if self._failed:
            return
        try:
            action()
        except Exception as error:
            self._failed = True
            log.warning("wandb failed (%s); the run goes on without it.", error)


def open_wandb(settings: LoggingConfig, folder: Path, name: str, run_id: str, config: dict[str, Any]) -> Wandb | None:
    """The wandb run, or None when it is off or cannot start: a logger must not stop a training run."""
    if settings.wandb == "disabled":
        return None
    try:
        return Wandb(settings, folder, name, run_id, config)
    except Exception as error:
        log.warning("wandb could not start (%s); the run goes on without it.", error)
        return None


def _scalars(record: Record) -> dict[str, float]:
    """The record's numbers under names that wandb groups: `train/loss`, `mixing/gss/layer-03`."""
    skipped = ("step", "time")
    values = {
        f"{record['kind']}/{key}": value
        for key, value in record.items()
        if isinstance(value, int | float) and key not in skipped
    }
    for layer, weights in enumerate(record.get("mixing", [])):
        for branch, weight in zip(record["branches"], weights, strict=True):
            values[f"mixing/{branch}/layer-{layer:02d}"] = weight
    for layer, share in enumerate(record.get("selected", [])):
        values[f"selected/{record['kind']}/layer-{layer:02d}"] = share
    return values


def _train_line(record: Record, steps: int) -> str:
    rate = record["tokens_per_s"]
    left = (steps - record["step"]) * record["tokens"] / max(rate, 1e-9)
    eta = datetime.timedelta(seconds=round(left))
    return (
        f"loss {record['loss']:.4f} · {rate:,.0f} tok/s · MFU {record['mfu']:.0%} · "
        f"data wait {record['data_wait']:.1%} · ETA {eta}"
    )
