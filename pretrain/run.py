"""One rank's life: join the others, open the run, resume, train, and leave with a code that can be trusted."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import math
import os
import shutil
import time
from typing import Any

import torch

from data_pipeline.batch import read_sequences
from data_pipeline.corpus import Corpus
from data_pipeline.loader import Loader
from data_pipeline.stream import Stream
from model.flops import flops_per_token
from pretrain import data_plan, metrics
from pretrain.checkpoint import WEIGHTS, Checkpoint, CheckpointStore
from pretrain.config import RunConfig
from pretrain.data import open_corpus, resolve, to_device
from pretrain.deepspeed_config import batch_split
from pretrain.distributed import Ranks, World, discover
from pretrain.elastic import OPTIMIZER, whole_optimizer
from pretrain.engine import ZERO_TAG, Engine, uses_bf16
from pretrain.errors import EXIT_DONE, EXIT_REQUEUE, RunFailed
from pretrain.evaluate import accumulate, batches_of, summarise
from pretrain.hardware import keep_memory, peak_flops, peak_memory, usable_cores
from pretrain.heartbeat import Heartbeat
from pretrain.inference import save_weights, write_sample
from pretrain.initial import Initial
from pretrain.loggers import Logger, Terminal, open_wandb, setup_logging
from pretrain.loop import Outcome, StepResult, Trainer
from pretrain.quarantine import QuarantineList
from pretrain.rundir import RunDirectory, config_hash
from pretrain.signals import StopFlag
from pretrain.state import CheckpointInfo, TrainState

log = logging.getLogger(__name__)


def train(config: RunConfig) -> int:
    """Trains (or goes on training) this run as one of its ranks; returns the exit code.

    Raises RunError, DataError or ModelError with a sentence for the user.
    """
    world = discover(os.environ)
    torch.set_num_threads(config.train.threads or max(1, usable_cores() // world.local_size))
    if not torch.cuda.is_available():
        keep_memory()
    directory = RunDirectory(config.run_dir)
    batch_split(config, world.size)
    dataset = open_corpus(config.data)
    config = resolve(config, dataset, directory.lanes())
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopFlag())
        if world.is_main:
            directory.create()
            stack.enter_context(directory.locked())
            directory.check(config)
        ranks = Ranks(world, config.train.timeout_s)
        ranks.barrier()  # the directory is there
        setup_logging(directory.logs, world.rank)
        code = Run(config, directory, dataset, ranks, stop).go()
        ranks.close()
    if code == EXIT_DONE and world.is_main:
        write_sample(config)
    return code


class Run:
    """Everything one rank holds while it trains; its methods are the loop's hooks."""

    def __init__(
        self, config: RunConfig, directory: RunDirectory, dataset: Corpus, ranks: Ranks, stop: StopFlag
    ) -> None:
        self.config, self.directory, self.dataset, self.ranks, self.stop = (
            config,
            directory,
            dataset,
            ranks,
            stop,
        )
        self.world: World = ranks.world
        self.heartbeat = Heartbeat(directory.heartbeats, self.world.rank)
        self.heartbeat.beat("start", 0)
        self.micro_batch, _ = batch_split(config, self.world.size)
        self.store = CheckpointStore(directory.checkpoints, config.checkpoint.keep)
        self.found = self._newest()
        self.engine = Engine(config, ranks, self._initial())
        self.state = TrainState()
        self.loggers: list[Logger] = []
        self.metrics: metrics.MetricsFile | None = None
        self.state.data.made_with = data_plan.identity(config, dataset)
        self.quarantine = QuarantineList(directory.quarantine, dataset, self.world.rank)
        self._streams: dict[str, Stream] = {}
        self.peak_flops = sum(ranks.sum(peak_flops(self.engine.device)))

    def go(self) -> int:
        """Resumes if there is something to resume, and trains. Returns the exit code."""
        self._resume()
        if self.world.is_main:
            self.directory.write(self.config)  # not before it is known that the run can go on with it
        loader = self._loader(self.state.sequences, self.state.step)
        self._open_logs()
        try:
            trainer = Trainer(
                self.config, self.ranks, self.engine, loader, self.state, self, self.stop, self.micro_batch
            )
            outcome = trainer.run()
        finally:
            loader.close()
            self._close_logs()
        self.heartbeat.beat("done" if outcome is Outcome.DONE else "stopped", self.state.step)
        if outcome is Outcome.STOPPED:
            log.info(
                "Stopped by %s at step %d; start it again and it continues.",
                self.stop.reason,
                self.state.step,
            )
        return EXIT_DONE if outcome is Outcome.DONE else EXIT_REQUEUE

    # --- hooks of the loop -------------------------------------------------------------------------------

    def after_step(self, result: StepResult, throughput: metrics.Throughput) -> None:
        """Writes a training record every `logging.every` steps, and at the first and the last."""
        step = self.state.step
        self.heartbeat.beat("train", step)
        self.quarantine.note(step)
        if step % self.config.logging.every and step not in (1, self.config.train.steps):
            return
        rate, waited = throughput.reading()
        mixing: dict[str, Any] = {}
        if self.config.model.mixed_branches:
            weights = self.engine.mixing_weights()  # on every rank: gathering them is collective
            mixing["branches"] = list(self.config.model.mixed_branches)
            mixing["mixing"] = [[round(w, 5) for w in layer] for layer in weights]
        selected = self.engine.selected_shares()
        waited, peak = self.ranks.largest(waited, peak_memory())
        self._record(
            "train",
            loss=result.loss,
            lr=result.learning_rate,
            grad_norm=result.grad_norm,
            tokens=result.tokens,
            tokens_seen=self.state.tokens,
            tokens_per_s=rate,
            mfu=rate * self._flops_per_token() / self.peak_flops,
            data_wait=waited,
            peak_memory=int(peak),
            **mixing,
            **metrics.selected(selected),
        )

    def validate(self) -> bool:
        """Evaluates the validation split, if there is one; False when a stop cut it short."""
        if "validation" not in self.dataset.split_names:
            self.state.validated_at = self.state.step
            return True
        self.heartbeat.beat("validate", self.state.step)
        cut_short = False

        def interrupted() -> bool:
            nonlocal cut_short
            cut_short = self.ranks.largest(bool(self.stop))[0] > 0
            return cut_short

        parts = {}
        self.engine.selected_shares()  # from here on those of the evaluation
        for name, split in self.dataset.splits("validation").items():
            batches = batches_of(split, self.config.data.longest, self.config.eval, self.world)
            with self.engine.evaluating():
                local = accumulate(self.engine.loss_sum, batches, self.engine.device, interrupted)
            if cut_short:
                return False
            self.quarantine.note(self.state.step)
            nats, tokens = self.ranks.sum(*local)
            parts[name] = summarise("validation", split, nats, int(tokens))
        result = data_plan.combine(self.config, "validation", parts)
        self.state.validation = [*self.state.validation, result.loss]
        self.state.validated_at = self.state.step
        components = {name: part.as_dict() for name, part in parts.items()} if len(parts) > 1 else None
        extra = {
            **({"components": components} if components else {}),
            **metrics.selected(self.engine.selected_shares()),
        }
        self._record("validation", **result.as_dict(), **extra)
        return True

    def save(self) -> None:
        """Writes a checkpoint. Raises RunError when the disk refuses; older checkpoints stay as they are."""
        step = self.state.step
        self.heartbeat.beat("save", step)
        fingerprint = self._fingerprint(self.world.size)
        if not math.isfinite(fingerprint):
            raise RunFailed(
                f"The weights of step {step} give a loss of {fingerprint}: they are not saved, and the last checkpoint "
                "stays as it is; lower optim.lr or set optim.clip, and start the run again."
            )
        problem = self._begin_checkpoint(step) if self.world.is_main else ""
        if not self.ranks.all_true(not problem):
            raise RunFailed(problem or f"Rank 0 could not begin the checkpoint of step {step}; its log says why.")
        try:
            self.engine.save(self.store.pending(step))
            with self.engine.gathered():
                if self.world.is_main:
                    save_weights(self.engine.module, self.store.pending(step) / WEIGHTS)
            self.ranks.barrier()
            if self.world.is_main:
                self.store.commit(step, self._info(fingerprint))
        except (OSError, RuntimeError) as error:
            self.store.abandon(step)
            raise RunFailed(self._save_problem(step, error)) from error
        self.ranks.barrier()

    # --- start ------------------------------------------------------------------------------------------

    def _initial(self) -> Initial | None:
        """Weights to begin with that the engine's own loading does not bring: another run's, or of another layout."""
        if self.found is None:
            given = self.config.train.init_from
            return Initial.find(given, self.dataset) if given else None
        info = self.found.info()
        return Initial(self.config.model, self.found) if self._moved(info) else None

    def _moved(self, info: CheckpointInfo) -> bool:
        """Whether the checkpoint was written by another number of ranks, or at another ZeRO stage."""
        return (info.world_size, info.zero_stage) != (self.world.size, self.config.train.zero_stage)

    def _newest(self) -> Checkpoint | None:
        found = self.store.latest() if self.world.is_main else None
        step = self.ranks.from_main(found.step if found else -1)
        return None if step < 0 else Checkpoint(self.directory.checkpoints / f"step-{step:08d}")

    def _resume(self) -> None:
        checkpoint = self.found
        if checkpoint is None:
            return
        info = checkpoint.info()
        data_plan.check_unchanged(self.config, self.dataset, checkpoint.path, info)
        if self._moved(info):
            self._take_up(checkpoint, info)
        else:
            self.engine.load(checkpoint.path)
        self.state = info.state
        self.state.restarts += 1
        if self._data_changed(info):
            self.state.data = data_plan.next_epoch(self.config, self.dataset, self.state)
            log.warning("The data is not what %s was trained on; going on with its next epoch.", checkpoint.path)
            return
        self.state.data.made_with = data_plan.identity(self.config, self.dataset)
        fingerprint = self._fingerprint(info.world_size)
        tolerance = 1e-2 if uses_bf16(self.config, self.engine.device) else 1e-5
        if not math.isclose(fingerprint, info.fingerprint, rel_tol=tolerance):
            raise RunFailed(
                f"The weights loaded from {checkpoint.path} give a loss of {fingerprint:.6f} on the fixed batch "
                f"instead of {info.fingerprint:.6f}: they are not the weights that were saved. "
                "Remove that checkpoint, and the run continues from the one before."
            )
        step, tokens = self.state.step, self.state.tokens
        log.info("Resumed from %s: step %d, %s tokens.", checkpoint.path.name, step, f"{tokens:,}")

    def _take_up(self, checkpoint: Checkpoint, info: CheckpointInfo) -> None:
        """Goes on from what other ranks, or another ZeRO stage, have written."""
        self.heartbeat.beat("convert", info.state.step)
        problem = ""
        if self.world.is_main:
            try:
                files, names = checkpoint.path / ZERO_TAG, self.engine.optimized
                whole_optimizer(self.store, checkpoint, files, info.zero_stage, names)
            except RunFailed as error:
                problem = str(error)
        if not self.ranks.all_true(not problem):
            raise RunFailed(problem or f"Rank 0 could not convert {checkpoint.path}; its log says why.")
        log.info(
            "%s was written by %d rank(s) at ZeRO stage %d; it is taken up by %d at stage %d.",
            *(checkpoint.path.name, info.world_size, info.zero_stage, self.world.size, self.config.train.zero_stage),
        )
        self.engine.take_up(checkpoint.path.with_name(f"{checkpoint.path.name}.elastic") / OPTIMIZER)

    def _data_changed(self, info: CheckpointInfo) -> bool:
        return bool(data_plan.difference(self.config, self.dataset, info))

    def _flops_per_token(self) -> float:
        return flops_per_token(self.config.model, self.config.data.length_at(max(0, self.state.step - 1)))["total"]

    def _stream(self) -> Stream:
        key = self.state.data.model_dump_json()
        if key not in self._streams:  # made once: packing counts every document
            self._streams = {key: data_plan.stream(self.config, self.dataset, self.state.data)}
        return self._streams[key]

    def _loader(self, start_sequence: int, start_step: int) -> Loader:
        return Loader(
            self._stream(),
            global_batch=self.config.batches,
            rank=self.world.rank,
            world=self.world.size,
            start_sequence=start_sequence,
            start_step=start_step,
            prefetch=self.config.data.prefetch,
        )

    def _open_logs(self) -> None:
        if not self.world.is_main:
            return
        removed = metrics.rewind(self.directory.metrics, self.state.step)
        self.metrics = metrics.MetricsFile(self.directory.metrics)
        wandb = open_wandb(
            self.config.logging,
            self.directory.path,
            self.directory.path.name,
            self.state.wandb_id,
            self.config.model_dump(mode="json"),
        )
        self.loggers = [Terminal(self.config.train.steps, self.state.step)]
        if wandb is not None:
            self.loggers.append(wandb)
            self.state.wandb_id = wandb.run_id
        parameters = self.engine.parameter_count
        self._record(
            "event",
            event="resume" if self.state.restarts else "start",
            ranks=self.world.size,
            rewound=removed,
        )
        if "validation" not in self.dataset.split_names:
            log.info("%s has no validation split: the run is not validated.", self.config.data.path)
        log.info(
            "%s: %s parameters, %d rank(s), ZeRO %d, %s, steps %d to %d.",
            self.directory.path,
            f"{parameters:,}",
            self.world.size,
            self.config.train.zero_stage,
            "bf16" if uses_bf16(self.config, self.engine.device) else "fp32",
            self.state.step,
            self.config.train.steps,
        )
        log.info("%s.", self.engine.kernels)

    def _close_logs(self) -> None:
        for logger in self.loggers:
            logger.close()
        if self.metrics is not None:
            self.metrics.close()

    # --- details ----------------------------------------------------------------------------------------

    def _record(self, kind: str, **values: Any) -> None:
        if self.metrics is None:
            return
        record = {"kind": kind, "step": self.state.step, "time": time.time(), **values}
        self.metrics.write(record)
        for logger in self.loggers:
            logger.log(record)

    def _fingerprint(self, rows: int) -> float:
        """Mean loss on the first `rows` sequences of this data order: the same batch at any time, on any ranks."""
        first = self.state.data
        stream = data_plan.stream(self.config, self.dataset, first)
        nats = predictions = 0.0
        with self.engine.evaluating():
            for begin in range(0, rows, self.world.size):
                row = begin + self.world.rank
                index = first.first_sequence + (row if row < rows else 0)  # all ranks take part in each pass (ZeRO 3)
                one = read_sequences(stream, [index], first.first_sequence)
                loss = float(self.engine.loss_sum(*to_device(one, self.engine.device)))
                if row < rows:
                    nats, predictions = nats + loss, predictions + one.predictions
        total, tokens = self.ranks.sum(nats, predictions)
        return total / max(tokens, 1.0)

    def _begin_checkpoint(self, step: int) -> str:
        """Makes room for a checkpoint; returns what is wrong, or nothing."""
        needed = 20 * self.engine.parameter_count  # weights twice, master weights and two moments, fp32
        try:
            free = shutil.disk_usage(self.directory.checkpoints).free
            if free < needed:
                return self._save_problem(step, f"{free / 1e6:,.0f} MB free, about {needed / 1e6:,.0f} MB needed")
            self.store.begin(step)
        except OSError as error:
            return self._save_problem(step, error)
        return ""

    def _save_problem(self, step: int, reason: object) -> str:
        kept = self.store.all()
        last = f"the checkpoint of step {kept[-1].step} is whole" if kept else "there is no earlier checkpoint"
        return (
            f"The checkpoint of step {step} could not be written to {self.directory.checkpoints} ({reason}); {last}: "
            "free some space or mend the permissions, and start the run again."
        )

    def _info(self, fingerprint: float) -> CheckpointInfo:
        packages = ("torch", "deepspeed", "numpy", "pha-pretrain")
        return CheckpointInfo(
            state=self.state,
            world_size=self.world.size,
            zero_stage=self.config.train.zero_stage,
            config_hash=config_hash(self.config),
            dataset_hash=self.dataset.hash,
            tokenizer_hash=self.dataset.tokenizer_hash,
            fingerprint=fingerprint,
            versions={name: _version(name) for name in packages},
        )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
