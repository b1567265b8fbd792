"""`pha demo`: the whole way from text to a report on one machine, with a real SIGKILL on the way.

Each stage is skipped when its result is there, so that a demo that was itself killed continues.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from data_pipeline.build import build
from data_pipeline.config import BuildConfig, TokenizerConfig
from data_pipeline.dataset import Dataset
from pretrain import config_file, metrics
from pretrain.baselines import measure
from pretrain.config import RunConfig
from pretrain.errors import RunError
from pretrain.files import write_json
from pretrain.inference import Trained, load, write_sample
from pretrain.report import write_report
from pretrain.rundir import RunDirectory

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
RANKS = 2


class Job(Protocol):
    """A launched training, as the demo needs it."""

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""

    def wait(self) -> int:
        """Waits for the exit code."""

    def kill(self) -> None:
        """SIGKILL to every rank."""


Launch = Callable[[list[str], int, Path], Job]
"""(command, ranks, folder for output) → the job."""


class Demo:
    """The stages of the demo, in order."""

    def __init__(
        self, run: Path, data: Path, text: tuple[str, ...], overrides: tuple[str, ...], launch: Launch
    ) -> None:
        """`text`: files to use instead of the installed documentation; `overrides`: for the training config."""
        self.directory, self.data, self.text, self.launch = RunDirectory(run), data, text, launch
        self.overrides = (f"run_dir={run}", f"data.path={data}", *overrides)
        self.config: RunConfig = config_file.load(CONFIG, self.overrides)
        for key in ("run_dir", "data.path"):
            if any(override.startswith(f"{key}=") for override in overrides):
                raise RunError(f"The demo takes its folders by --run and --data, not by {key}=.")
        self.kill_step = self._kill_step()
        self.console = Console(stderr=True, highlight=False)

    def go(self) -> None:
        """Runs all stages. Raises RunError or DataError with a sentence."""
        started = time.monotonic()
        dataset = self._build()
        self.directory.create()
        baselines = self._baselines(dataset)
        self._train_with_a_kill()
        identical = self._compare_tellings()
        trained = load(self.directory.path)
        evaluation = self._evaluate(trained)
        write_sample(self.config)
        page = write_report(self.directory.path)
        self._summary(evaluation, baselines, identical, page, time.monotonic() - started)

    def _say(self, text: str) -> None:
        self.console.print(f"[bold]demo:[/] {text}", soft_wrap=True)

    def _build(self) -> Dataset:
        self._say("text → clean → split → SentencePiece → WebDataset shards")
        if (self.data / "index.json").is_file():  # the installed packages may have changed since; the text may not
            return Dataset.open(self.data)
        sources = self.text or ("installed-docs",)
        build(BuildConfig(sources=sources, output=self.data, tokenizer=TokenizerConfig(vocab_size=4096)))
        return Dataset.open(self.data)

    def _baselines(self, dataset: Dataset) -> dict[str, float]:
        path = self.directory.path / "baselines.json"
        if path.is_file():
            known: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
            return known
        found = measure(dataset, "validation")
        write_json(path, found)
        return found

    # --- training, killed half way ------------------------------------------------------------------------

    def _train_with_a_kill(self) -> None:
        killed = self.directory.path / "killed.json"
        if not killed.is_file() and self._last_step() < self.config.train.steps:
            step = self._train_until_killed()
            write_json(killed, {"step": step})
            self._say(f"killed both ranks with SIGKILL at step {step}; now the same command again")
        self._say(f"training on {RANKS} ranks to step {self.config.train.steps}")
        code = self._start().wait()
        if code:
            raise RunError(
                f"Training ended with exit code {code}; see {self.directory.logs}. Start the demo again: it continues."
            )

    def _train_until_killed(self) -> int:
        """Trains to a step half way that is well past a checkpoint, then kills every rank without warning."""
        self._say(f"training on {RANKS} ranks; at step {self.kill_step} it will be killed without warning")
        job = self._start()
        while self._last_step() < self.kill_step:
            code = job.poll()
            if code is not None:
                raise RunError(f"Training ended with exit code {code} before the kill; see {self.directory.logs}.")
            time.sleep(0.05)
        job.kill()
        return self._last_step()

    def _kill_step(self) -> int:
        """A logged step after a checkpoint and well before the end. Raises RunError if there is none."""
        steps, every = self.config.train.steps, self.config.checkpoint.every
        half = steps // 2
        step = max(every, half - half % every) + max(self.config.logging.every, every // 3)
        if step + self.config.logging.every >= steps:
            raise RunError(
                f"The demo kills its training at step {step}, which {steps} steps do not leave room for; set "
                "train.steps higher, or checkpoint.every and logging.every lower."
            )
        return step

    def _start(self) -> Job:
        command = [sys.executable, "-m", "pretrain.cli", "train", str(CONFIG), *self.overrides]
        return self.launch(command, RANKS, self.directory.logs)

    def _last_step(self) -> int:
        training = metrics.of_kind(metrics.read(self.directory.metrics), "train")
        return int(training[-1]["step"]) if training else 0

    def _compare_tellings(self) -> tuple[int, int]:
        """Steps that were trained before the kill and again after it: (identical to the last digit, all)."""
        superseded = self.directory.metrics.with_suffix(".superseded.jsonl")
        before = metrics.of_kind(metrics.read(superseded), "train")
        after = {r["step"]: r for r in metrics.of_kind(metrics.read(self.directory.metrics), "train")}
        pairs = [(r, after[r["step"]]) for r in before if r["step"] in after]
        same = sum(a["loss"] == b["loss"] and a["grad_norm"] == b["grad_norm"] for a, b in pairs)
        return same, len(pairs)

    # --- afterwards ---------------------------------------------------------------------------------------

    def _evaluate(self, trained: Trained) -> dict[str, Any]:
        self._say("evaluating the whole validation and test splits")
        results = {name: trained.evaluate(name).as_dict() for name in ("validation", "test")}
        write_json(self.directory.path / "evaluation.json", results)
        return results

    def _summary(
        self,
        evaluation: dict[str, Any],
        baselines: dict[str, float],
        identical: tuple[int, int],
        page: Path,
        seconds: float,
    ) -> None:
        validation = evaluation["validation"]
        same, pairs = identical
        self._say(
            f"resume: {same} of {pairs} steps trained twice have the same loss and gradient norm to the last digit"
        )
        self._say(
            f"validation: {validation['bits_per_byte']:.4f} bits per byte, perplexity {validation['perplexity']:.2f}"
        )
        for name, value in baselines.items():
            self._say(f"  the same text, {name}: {value:.4f} bits per byte")
        sample = json.loads(self.directory.sample.read_text(encoding="utf-8"))
        self.console.print(f"{sample['prompt']}{sample['continuation']}", style="italic", markup=False)
        self._say(f"report: {page} ({seconds:.0f} s)")
        if not pairs:
            raise RunError("No step was trained twice, so the resume was not compared; remove the run and start again.")
        if same != pairs:
            raise RunError(f"The resumed run differs from the killed one in {pairs - same} of {pairs} steps.")
        if validation["bits_per_byte"] >= baselines["unigram"]:
            self._say("the model does not beat the unigram model yet; train longer (train.steps=...)")
