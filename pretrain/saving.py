"""The checkpoints of a run as its ranks write and take them up: together, or not at all."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import logging
import math
import shutil
import time
from dataclasses import dataclass

from data_pipeline.batch import read_sequences
from data_pipeline.corpus import Corpus
from pretrain import data_plan
from pretrain.background import Task, write_files
from pretrain.checkpoint import WEIGHTS, Checkpoint, CheckpointStore
from pretrain.config import RunConfig
from pretrain.data import to_device
from pretrain.deepspeed_config import zero_stage
from pretrain.distributed import Ranks
from pretrain.elastic import OPTIMIZER, whole_optimizer
from pretrain.engine import ZERO_TAG, Engine, uses_bf16
from pretrain.errors import RunError, RunFailed
from pretrain.fence import Fence
from pretrain.heartbeat import Heartbeat
from pretrain.inference import weights_bytes
from pretrain.initial import Initial
from pretrain.rundir import RunDirectory, config_hash
from pretrain.state import CheckpointInfo, TrainState

log = logging.getLogger(__name__)


MOST_FAILURES = 3
"""Checkpoints in a row that could not be written end the run: more of it would be lost with every hour."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is there."""

    step: int
    stall_s: float
    """How long training waited for it."""
    seconds: float
    """From its beginning until it could be taken up: what a stop must be given."""
    commit_s: float
    """Of these, hashing, marking and renaming by the main rank."""

    def as_dict(self) -> dict[str, float]:
        """For the records, whose step it is."""
        return dataclasses.asdict(self)


@dataclass
class _Pending:
    """A checkpoint that is on its way to the disk."""

    info: CheckpointInfo
    files: int
    """That all ranks write."""
    writing: Task
    began: float
    """By the performance counter [s], as the other times."""
    stall_s: float = 0.0
    committing: Task | None = None

    @property
    def step(self) -> int:
        return self.info.state.step


class Saving:
    """Finds, writes and loads checkpoints. All methods but the constructor are collective.

    Training waits for a snapshot in memory only. Each rank writes its files behind it; when all have, the main rank
    hashes, marks and renames them. A checkpoint that cannot be written is told and given up: the run goes on, and the
    next one is tried when it is due.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        dataset: Corpus,
        ranks: Ranks,
        fence: Fence,
        heartbeat: Heartbeat,
    ) -> None:
        self.config, self.directory, self.dataset, self.ranks = config, directory, dataset, ranks
        self.heartbeat = heartbeat
        self._stage = zero_stage(config, ranks.world.size)
        self.store = CheckpointStore(directory.checkpoints, config.checkpoint, fence)
        self._pending: _Pending | None = None
        self._failures = 0
        self.saved: list[Saved] = []
        """Checkpoints that were completed since these were last taken away, on the main rank."""
        self.problems: list[str] = []
        """What could not be saved since these were last taken away."""

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies. Raises RunFailed when all are damaged."""
        self.finish()
        found = self.store.latest() if self.ranks.world.is_main else None
        step = self.ranks.from_main(found.step if found else -1)
        return None if step < 0 else Checkpoint(self.directory.checkpoints / f"step-{step:08d}")

    def initial(self, found: Checkpoint | None) -> Initial | None:
        """Weights to begin with that the engine's own loading does not bring: another run's, or of another layout."""
        if found is None:
            given = self.config.train.init_from
            return Initial.find(given, self.dataset) if given else None
        return Initial(self.config.model, found) if self.moved(found.info()) else None

    def moved(self, info: CheckpointInfo) -> bool:
        """Whether the checkpoint was written by another number of ranks, or at another ZeRO stage."""
        return (info.world_size, info.zero_stage) != (self.ranks.world.size, self._stage)

    def load(self, checkpoint: Checkpoint, info: CheckpointInfo, engine: Engine) -> None:
        """Brings weights and optimizer of a verified checkpoint to the engine, which began with `initial`."""
        if not self.moved(info):
            engine.load(checkpoint.path)
            return
        self.heartbeat.beat("convert", info.state.step)
        problem = ""
        if self.ranks.world.is_main:
            try:
                files = checkpoint.path / ZERO_TAG
                whole_optimizer(self.store, checkpoint, files, info.zero_stage, engine.optimized)
            except RunFailed as error:
                problem = str(error)
        if not self.ranks.all_true(not problem):
            raise RunFailed(problem or f"Rank 0 could not convert {checkpoint.path}; its log says why.")
        log.info(
            "%s was written by %d rank(s) at ZeRO stage %d; it is taken up by %d at stage %d.",
            *(checkpoint.path.name, info.world_size, info.zero_stage),
            *(self.ranks.world.size, self._stage),
        )
        engine.take_up(self.store.beside(checkpoint) / OPTIMIZER)

    def check_loaded(self, checkpoint: Checkpoint, info: CheckpointInfo, engine: Engine, state: TrainState) -> None:
        """Raises RunFailed unless the weights give the loss that they gave when they were saved."""
        fingerprint = self.fingerprint(engine, state, info.world_size)
        tolerance = 1e-2 if uses_bf16(self.config, engine.device) else 1e-5
        if not math.isclose(fingerprint, info.fingerprint, rel_tol=tolerance):
            raise RunFailed(
                f"The weights loaded from {checkpoint.path} give a loss of {fingerprint:.6f} on the fixed batch "
                f"instead of {info.fingerprint:.6f}: they are not the weights that were saved. "
                "Remove that checkpoint, and the run continues from the one before."
            )

    def save(self, engine: Engine, state: TrainState) -> None:
        """Takes a snapshot and begins to write it; `poll` and `finish` bring it to its end.

        Raises RunFailed where the weights are not finite, and where a disk has refused too many checkpoints in a row.
        """
        began, step, is_main = time.perf_counter(), state.step, self.ranks.world.is_main
        self.heartbeat.beat("save", step)  # before the wait for the last one, which is part of saving
        self.finish()
        fingerprint = self.fingerprint(engine, state, self.ranks.world.size)
        if not math.isfinite(fingerprint):
            raise RunFailed(
                f"The weights of step {step} give a loss of {fingerprint}: they are not saved, and the last checkpoint "
                "stays as it is; lower optim.lr or set optim.clip, and start the run again."
            )
        problem = self._begin(step, engine) if is_main else ""
        if not self.ranks.all_true(not problem):
            self._give_up(step, problem)
            return
        folder = self.store.pending(step)
        try:
            files = engine.snapshot(folder)
            with engine.gathered():
                if is_main:
                    files[folder / WEIGHTS] = weights_bytes(engine.module)
        except OSError as error:  # any other error is no disk's: a rank that is gone, or no memory
            self.store.abandon(step)
            raise RunFailed(self._problem(step, error)) from error
        info = self._info(state.model_copy(deep=True), fingerprint)
        (count,) = self.ranks.sum(len(files))
        self._pending = _Pending(info, int(count), Task(functools.partial(write_files, files)), began)
        self._pending.stall_s = time.perf_counter() - began
        if not self.config.checkpoint.background:
            self.finish()

    def poll(self) -> None:
        """Brings a checkpoint that is being written one stage further, if all ranks are ready for it."""
        pending = self._pending
        if pending is None:
            return
        committed = pending.committing is not None and pending.committing.done
        written, failed, committed_all = self.ranks.sum(
            pending.writing.done, pending.writing.error is not None, committed
        )
        if written == self.ranks.world.size:
            self._written(pending, failed > 0, committed_all > 0)

    def finish(self) -> None:
        """Waits until no checkpoint is being written."""
        if self._pending is not None:
            self._pending.writing.wait()
        while self._pending is not None:
            if self._pending.committing is not None:
                self._pending.committing.wait()
            self.poll()

    def require_saved(self, step: int) -> None:
        """Waits for all writing. Raises RunFailed unless the checkpoint of this step is there: it was the last one."""
        self.heartbeat.beat("save", step)
        self.finish()
        there = not self.ranks.world.is_main or any(kept.step == step for kept in self.store.all())
        if not self.ranks.all_true(there):
            raise RunFailed(self.problems[-1] if self.problems else f"Rank 0 could not save step {step}; see its log.")

    def _written(self, pending: _Pending, failed: bool, committed: bool) -> None:
        """All ranks have written: the main rank commits, and all learn how that ended."""
        if failed:
            self._give_up(pending.step, self._problem(pending.step, pending.writing.error or "another rank's disk"))
        elif self.ranks.world.is_main and pending.committing is None:
            commit = functools.partial(self.store.commit, pending.step, pending.info, pending.files)
            pending.committing = Task(commit)
        elif committed:
            error = pending.committing.error if pending.committing is not None else None
            if isinstance(error, RunError):  # this start of the run has been overtaken
                raise error
            if self.ranks.all_true(error is None):
                self._note(pending)
                self._pending, self._failures = None, 0
            else:
                self._give_up(pending.step, self._problem(pending.step, error or "the main rank's disk"))

    def _note(self, pending: _Pending) -> None:
        task = pending.committing
        if task is not None:  # on the main rank
            whole = task.ended - pending.began
            stall = pending.stall_s if self.config.checkpoint.background else whole
            seconds = (stall, whole, task.ended - task.began)
            self.saved.append(Saved(pending.step, *(round(value, 4) for value in seconds)))

    def _give_up(self, step: int, problem: str) -> None:
        self._pending, self._failures = None, self._failures + 1
        self.ranks.barrier()  # nobody writes any more
        if self.ranks.world.is_main:
            self.store.abandon(step)
            self.problems.append(problem)
            log.error("%s", problem)
        if self._failures >= MOST_FAILURES:
            raise RunFailed(problem or f"Rank 0 could not save step {step}; its log says why.")

    def fingerprint(self, engine: Engine, state: TrainState, rows: int) -> float:
        """Mean loss on the first `rows` sequences of this data order: the same batch at any time, on any ranks."""
        world, first = self.ranks.world, state.data
        stream = data_plan.stream(self.config, self.dataset, first)
        nats = predictions = 0.0
        with engine.evaluating():
            for begin in range(0, rows, world.size):
                row = begin + world.rank
                index = first.first_sequence + (row if row < rows else 0)  # all ranks take part in each pass (ZeRO 3)
                one = read_sequences(stream, [index], first.first_sequence)
                loss = float(engine.loss_sum(*to_device(one, engine.device)))
                if row < rows:
                    nats, predictions = nats + loss, predictions + one.predictions
        total, tokens = self.ranks.sum(nats, predictions)
        return total / max(tokens, 1.0)

    def _begin(self, step: int, engine: Engine) -> str:
        """Makes room for a checkpoint; returns what is wrong, or nothing."""
        needed = 20 * engine.parameter_count  # weights twice, master weights and two moments, fp32
        try:
            free = shutil.disk_usage(self.directory.checkpoints).free
            if free < needed:
                return self._problem(step, f"{free / 1e6:,.0f} MB free, about {needed / 1e6:,.0f} MB needed")
            self.store.begin(step)
        except OSError as error:
            return self._problem(step, error)
        return ""

    def _problem(self, step: int, reason: object) -> str:
        kept = self.store.all()
        last = f"the checkpoint of step {kept[-1].step} is whole" if kept else "there is no earlier checkpoint"
        return (
            f"The checkpoint of step {step} could not be written to {self.directory.checkpoints} ({reason}); {last}: "
            "free some space or mend the permissions."
        )

    def _info(self, state: TrainState, fingerprint: float) -> CheckpointInfo:
        packages = ("torch", "deepspeed", "numpy", "pha-pretrain")
        return CheckpointInfo(
            state=state,
            world_size=self.ranks.world.size,
            zero_stage=self._stage,
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
