"""One rank's life: join the others, open the run, resume, train, and leave with a code that can be trusted."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import Any

import torch

from data_pipeline.corpus import Corpus
from data_pipeline.errors import DataError
from data_pipeline.loader import Loader
from data_pipeline.provenance import documents_of
from data_pipeline.stream import Stream
from model.flops import flops_per_token
from pretrain import data_plan, exits, metrics
from pretrain.config import RunConfig
from pretrain.data import open_corpus, resolve
from pretrain.deepspeed_config import batch_split
from pretrain.determinism import Collector, settle
from pretrain.distributed import Ranks, World, discover
from pretrain.engine import Engine, uses_bf16
from pretrain.errors import EXIT_DONE, EXIT_REQUEUE, RunError, RunFailed
from pretrain.evaluate import accumulate, batches_of, summarise
from pretrain.fence import Fence
from pretrain.guards import Verdict
from pretrain.hardware import keep_memory, peak_flops, peak_memory, usable_cores
from pretrain.heartbeat import Heartbeat
from pretrain.inference import write_sample
from pretrain.loggers import Logger, Terminal, open_wandb, setup_logging
from pretrain.loop import Outcome, StepResult, Trainer
from pretrain.quarantine import QuarantineList
from pretrain.rundir import RunDirectory
from pretrain.saving import Saving
from pretrain.signals import StopFlag
from pretrain.startup import Startup
from pretrain.state import CheckpointInfo, TrainState
from pretrain.watchdog import Watchdog

log = logging.getLogger(__name__)

KEPT_BY_ROLLBACK = ("guard", "sequences", "data", "restarts", "wandb_id")
"""Of the state: where the data goes on, and what belongs to this start and not to the weights."""


def train(config: RunConfig) -> int:
    """Trains (or goes on training) this run as one of its ranks; returns the exit code.

    Raises RunError, DataError or ModelError with a sentence for the user.
    """
    startup = Startup()
    startup.mark("imports")
    world = discover(os.environ)
    torch.set_num_threads(config.train.threads or max(1, usable_cores() // world.local_size))
    settle(config.train.deterministic)
    if not torch.cuda.is_available():
        keep_memory()
    directory = RunDirectory(config.run_dir)
    batch_split(config, world.size)
    dataset = open_corpus(config.data)
    config = resolve(config, dataset, directory.lanes())
    startup.mark("data")
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopFlag())
        generation = 0
        if world.is_main:
            directory.create()
            stack.enter_context(directory.locked())
            directory.check(config)
            if directory.stop.exists():
                raise RunError(f"{directory.stop} asks this run not to train; remove that file to go on.")
            directory.forget_heartbeats()
            generation = Fence.rise(directory.generations).generation
        stop.watch(directory.stop)
        ranks = Ranks(world, config.train.timeout_s)
        fence = Fence(directory.generations, ranks.from_main(generation))
        exits.register(directory.exits, fence.generation, world.rank)
        setup_logging(directory.logs, world.rank)
        startup.mark("ranks")
        heartbeat = Heartbeat(directory.heartbeats, world.rank, fence.generation, config.watchdog)
        heartbeat.beat("start", 0)
        stack.enter_context(Watchdog(heartbeat, directory.logs))
        code = Run(config, directory, dataset, ranks, stop, fence, heartbeat, startup).go()
        ended = "the run has reached its last step" if code == EXIT_DONE else "another rank was asked to stop"
        exits.note(code, stop.reason or ended)
        ranks.close()
    if code == EXIT_DONE and world.is_main and not directory.stop.exists():
        write_sample(config)
    return code


class Run:
    """Everything one rank holds while it trains; its methods are the loop's hooks."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        dataset: Corpus,
        ranks: Ranks,
        stop: StopFlag,
        fence: Fence,
        heartbeat: Heartbeat,
        startup: Startup,
    ) -> None:
        self.config, self.directory, self.dataset = config, directory, dataset
        self.ranks, self.stop = ranks, stop
        self.world: World = ranks.world
        self.heartbeat = heartbeat
        self.startup = startup
        self.micro_batch, _ = batch_split(config, self.world.size)
        self.fence = fence
        self.saving = Saving(config, directory, dataset, ranks, fence, self.heartbeat)
        self.found = self.saving.newest()
        startup.mark("checkpoint verified")
        self.engine = Engine(config, ranks, self.saving.initial(self.found))
        startup.mark("engine")
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
        self.loader = self._loader(self.state.sequences, self.state.step)
        self.collector = Collector(self.config.train.collect_every)
        self._open_logs()
        self.startup.mark("checkpoint loaded")
        try:
            trainer = Trainer(
                self.config, self.ranks, self.engine, self.loader, self.state, self, self.stop, self.micro_batch
            )
            outcome = trainer.run()
            self.saving.require_saved(self.state.step)
            self._tell_saved()
            if outcome is Outcome.STOPPED:
                waited = time.monotonic() - self.stop.since if self.stop else 0.0
                self._record("event", event="stop", reason=self.stop.reason, seconds=round(waited, 2))
        finally:
            self.collector.close()
            self.loader.close()
            self._close_logs()
        self.heartbeat.beat("done" if outcome is Outcome.DONE else "stopped", self.state.step)
        if outcome is Outcome.DONE:
            return EXIT_DONE
        by_file = self.ranks.largest(self.stop.by_file)[0] > 0
        how = f"remove {self.directory.stop} and start it again" if by_file else "start it again"
        log.info("Stopped by %s at step %d; %s, and it continues.", self.stop.reason, self.state.step, how)
        return EXIT_DONE if by_file else EXIT_REQUEUE

    # --- hooks of the loop -------------------------------------------------------------------------------

    def after_step(self, result: StepResult, throughput: metrics.Throughput) -> None:
        """Writes a training record every `logging.every` steps, and at the first and the last."""
        step = self.state.step
        self.heartbeat.beat("train", step, result.compute_s)
        exits.at(step)
        self.collector.step(step)
        if self.startup.ends("first step"):
            self._record("event", event="startup", seconds=self.startup.seconds)
        self.saving.poll()
        self._tell_saved()
        self.quarantine.note(step)
        if result.verdict is not Verdict.TAKE:
            self._left_out(result)
        if not self.config.logs_step(step):
            return
        rate, waited = throughput.reading()
        mixing: dict[str, Any] = {}
        if self.config.model.mixed_branches:
            weights = self.engine.mixing_weights()  # on every rank: gathering them is collective
            mixing["branches"] = list(self.config.model.mixed_branches)
            mixing["mixing"] = [[round(w, 5) for w in layer] for layer in weights]
            mixing["branch_rms"] = self.engine.branch_rms()
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
            **metrics.utilisation_by_part(self._flops_per_token(), rate, self.peak_flops),
            data_wait=waited,
            peak_memory=int(peak),
            **mixing,
            **metrics.selected(selected),
        )

    def _tell_saved(self) -> None:
        """An event for each checkpoint that is there, or could not be written, since this was last asked."""
        grace = self.config.checkpoint.grace_s
        for saved in self.saving.saved:
            self._record("event", event="checkpoint", **saved.as_dict())
            if grace is not None and saved.seconds > grace:
                self._record("event", event="slow_save", seconds=saved.seconds, grace_s=grace)
                log.warning(
                    "The checkpoint of step %d took %.1f s, and a stop leaves checkpoint.grace_s = %g s: it would be "
                    "lost; ask for the stop earlier (Slurm: --signal), or find a faster disk.",
                    *(saved.step, saved.seconds, grace),
                )
        for problem in self.saving.problems:
            self._record("event", event="save_failed", problem=problem)
        self.saving.saved.clear()
        self.saving.problems.clear()

    def _left_out(self, result: StepResult) -> None:
        """An event with what was read: sequences, and the hashes by which `pha data show` finds the documents."""
        read = range(self.state.sequences - self._sequences_of(self.state.step), self.state.sequences)
        values = {"loss": result.loss, "grad_norm": result.grad_norm, "sequences": [read.start, read.stop]}
        found: list[str] = []
        with contextlib.suppress(DataError):  # a list for people, which must not end the run
            found = documents_of(self._stream(), read) if self.world.is_main else []
        self._record("event", event=result.verdict.value, documents=found, **values)
        log.warning(
            "Step %d leaves the weights alone: %s (loss %.4g).", self.state.step, result.verdict.value, result.loss
        )

    def _sequences_of(self, step: int) -> int:
        return data_plan.sequences_before(self.config, step) - data_plan.sequences_before(self.config, step - 1)

    def validate(self) -> bool:
        """Evaluates the validation split, if there is one; False when a stop cut it short."""
        if "validation" not in self.dataset.split_names:
            self.state.validated_at = self.state.step
            return True
        self.heartbeat.beat("validate", self.state.step)
        cut_short = False

        def interrupted() -> bool:
            nonlocal cut_short
            self.heartbeat.beat("validate", self.state.step)
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
        """Begins to write a checkpoint; older ones stay as they are whatever becomes of it. Raises RunFailed."""
        self.saving.save(self.engine, self.state)
        self._tell_saved()

    def roll_back(self) -> Loader | None:
        """Back to the newest checkpoint; the data goes on behind the batch that was read last. None without one."""
        self.heartbeat.beat("load", self.state.step)
        found = self.saving.newest()
        if found is None or self.saving.moved(info := found.info()):
            if self.state.guard.in_a_row <= self.config.guards.max_skips:
                log.warning("There is no checkpoint of these ranks to go back to: the step is left out instead.")
                return None
            raise RunFailed(
                f"The run {self.directory.path} should go back to its last checkpoint, but has none that these ranks "
                "wrote; lower optim.lr, and start the run again."
            )
        left, guard = self.state.step, self.state.guard
        self.loader.close()
        self.saving.load(found, info, self.engine)
        for name, value in info.state:
            if name not in KEPT_BY_ROLLBACK:
                setattr(self.state, name, value)
        guard.rollbacks, guard.in_a_row, guard.losses = guard.rollbacks + 1, 0, [*info.state.guard.losses]
        self.state.data.returns.append((self.state.sequences, self.state.step))
        if self.metrics is not None:
            self.metrics.close()
            metrics.rewind(self.directory.metrics, self.state.step)
            self.metrics = metrics.MetricsFile(self.directory.metrics)
        self._record("event", event="rollback", left=left, budget=self.config.guards.rollbacks - guard.rollbacks)
        log.warning("Went back from step %d to %s; the data goes on.", left, found.path.name)
        self.save()  # so that a restart knows where the data goes on
        self.loader = self._loader(self.state.sequences, self.state.step)
        return self.loader

    # --- start ------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        checkpoint = self.found
        if checkpoint is None:
            return
        info = checkpoint.info()
        data_plan.check_unchanged(self.config, self.dataset, checkpoint.path, info)
        self.saving.load(checkpoint, info, self.engine)
        self.state = info.state
        self.state.restarts += 1
        if self._data_changed(info):
            self.state.data = data_plan.next_epoch(self.config, self.dataset, self.state)
            self.state.guard.losses = []  # of other data
            log.warning("The data is not what %s was trained on; going on with its next epoch.", checkpoint.path)
            return
        self.state.data.made_with = data_plan.identity(self.config, self.dataset)
        self.saving.check_loaded(checkpoint, info, self.engine, self.state)
        step, tokens = self.state.step, self.state.tokens
        log.info("Resumed from %s: step %d, %s tokens.", checkpoint.path.name, step, f"{tokens:,}")

    def _data_changed(self, info: CheckpointInfo) -> bool:
        return bool(data_plan.difference(self.config, self.dataset, info))

    def _flops_per_token(self) -> dict[str, float]:
        return flops_per_token(self.config.model, self.config.data.length_at(max(0, self.state.step - 1)))

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
            self.engine.zero_stage,
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
        self.fence.check()
        record = {"kind": kind, "step": self.state.step, "time": time.time(), **values}
        self.metrics.write(record)
        for logger in self.loggers:
            logger.log(record)
