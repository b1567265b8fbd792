"""One tree of typed, frozen models that describes a run.

A run is one YAML file plus `key.sub=value` overrides. Values come, weakest first, from: the defaults here,
the file named by `extends:` (one parent), the file itself, a model `preset:`, the overrides. An unknown key
is an error that names the nearest one. This module imports no torch, so that a login node can read configs.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from model.config import ModelConfig
from pretrain.cluster_config import ClusterConfig
from pretrain.section import Section


class Change(Section):
    """A value from a step on."""

    from_step: int = Field(ge=0)
    """The first step (from 0) that it holds for."""
    value: int = Field(ge=1)


class Weights(Section):
    """A mixture's weights from a step on."""

    from_step: int = Field(ge=0)
    weights: dict[str, float]
    """Dataset's name → its share of the sequences; they need not sum to one."""


class MixtureConfig(Section):
    """Several datasets of one tokenizer, read together."""

    datasets: dict[str, Path | str] = Field(min_length=2)
    """Name → directory; the names appear in the metrics."""
    weights: tuple[Weights, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _steps_rise(self) -> MixtureConfig:
        _check_steps("data.mixture.weights", [entry.from_step for entry in self.weights])
        return self


def _check_steps(key: str, steps: list[int]) -> None:
    if not steps or steps[0] != 0 or any(b <= a for a, b in itertools.pairwise(steps)):
        raise ValueError(f"{key}: from_step must begin with 0 and rise from entry to entry, not {steps}")


def changes(value: int | tuple[Change, ...]) -> list[tuple[int, int]]:
    """A number or its schedule as (first step, value), the first from step 0."""
    return [(0, value)] if isinstance(value, int) else [(entry.from_step, entry.value) for entry in value]


class DataConfig(Section):
    """Which tokens are read, and in which order."""

    path: Path | str | None = None
    """The dataset's directory, as written by `pha data build`, or its URL (file://, http://, https://, s3://)."""
    mixture: MixtureConfig | None = None
    """Several datasets instead of one path."""
    cache_dir: Path | None = None
    """Local directory that keeps what was read from a URL; all ranks of a machine share it."""
    cache_bytes: int = Field(32 * 1024**3, ge=0)
    """Budget of the blocks in `cache_dir`; the least recently used leave first."""
    on_damage: Literal["stop", "quarantine"] = "stop"
    """Stored data that is wrong stops the run, or becomes padding, recorded, in all ranks alike."""
    seq_len: int | tuple[Change, ...] = 1024
    """Tokens in one sequence; or a list of {from_step, value}."""
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    """`concatenate` cuts the stream of documents into sequences; `best_fit` fills them with whole documents."""
    on_change: Literal["refuse", "next_epoch"] = "refuse"
    """When the data or its order is not what the run was started with: refuse, or go on with the next epoch."""
    seed: int = 0
    """Decides the order of blocks in each epoch."""
    lanes: int | None = Field(None, ge=1)
    """Streams that the epoch is cut into; none means the global batch. Fixed for the life of a run."""
    prefetch: int = Field(2, ge=1)
    """Batches read ahead."""

    @model_validator(mode="after")
    def _is_whole(self) -> DataConfig:
        if (self.path is None) == (self.mixture is None):
            raise ValueError("data needs either path (one dataset) or mixture (several), and not both")
        _check_steps("data.seq_len", [step for step, _ in changes(self.seq_len)])
        if min(length for _, length in changes(self.seq_len)) < 2:
            raise ValueError("data.seq_len must be at least 2")
        return self

    @property
    def paths(self) -> dict[str, Path | str]:
        """Name → directory or URL of every dataset; a single one is called `data`."""
        if self.mixture is not None:
            return self.mixture.datasets
        assert self.path is not None  # _is_whole
        return {"data": self.path}

    @property
    def longest(self) -> int:
        """The largest sequence length: what is validated with, so that the figures of all steps can be compared."""
        return max(length for _, length in changes(self.seq_len))

    def length_at(self, step: int) -> int:
        """The sequence length of a step."""
        return [length for first, length in changes(self.seq_len) if first <= step][-1]

    @field_validator("path", mode="before")
    @classmethod
    def _path_or_url(cls, value: Any) -> Any:
        """A string without a scheme is a path; one with a scheme stays as it is (Path would fold its slashes)."""
        return Path(value) if isinstance(value, str) and not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", value) else value


class ScheduleConfig(Section):
    """The learning rate as a function of the step and of the validation history."""

    kind: Literal["cosine", "plateau", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    final_ratio: float = Field(0.1, ge=0, le=1)
    """The floor, as a share of the peak."""
    plateau_factor: float = Field(0.75, gt=0, lt=1)
    plateau_patience: int = Field(3, ge=0)
    """Validations without improvement that are tolerated before the rate is cut (ReduceLROnPlateau)."""


Beta = Annotated[float, Field(ge=0, lt=1)]
"""The share of the old average that a step keeps."""


class OptimConfig(Section):
    """AdamW."""

    lr: float = Field(4.5e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    clip: float = Field(1.0, ge=0)
    """The gradient's norm is clipped to this; 0 means never."""
    implementation: Literal["auto", "fused", "deepspeed_cpu"] = "auto"
    """`fused` is torch's; `deepspeed_cpu` is DeepSpeedCPUAdam, which compiles itself at first use (g++)."""
    schedule: ScheduleConfig = ScheduleConfig()


class RecomputeConfig(Section):
    """Activation checkpointing: which blocks are computed again in the backward pass."""

    mode: Literal["none", "full", "offload"] = "none"
    """`full` keeps a block's input on the device; `offload` keeps it in host memory."""
    every: int = Field(1, ge=1)
    """Every k-th block; 1 means all."""


class TrainConfig(Section):
    """The size of a step and how it is computed."""

    steps: int = Field(1000, ge=1)
    global_batch: int | tuple[Change, ...] = 24
    """Sequences in one optimizer step, over all ranks; or a list of {from_step, value}."""
    micro_batch: int | None = Field(None, ge=1)
    """Sequences in one forward pass of one rank; none means the rank's whole share."""
    seed: int = 0
    """Initial weights and dropout."""
    objective: Literal["lm", "distill"] = "lm"
    """`lm` predicts the next token. `distill` teaches a `hedgehog`'s feature maps its softmax attention and leaves all
    other weights as `init_from` has them: training losses are then the mismatch in nats a token, and validations those
    of the language model, with the features as they are."""
    init_from: Path | None = None
    """Another run, whose newest weights this one starts from at its first start: of the same model, or those of a
    `transformer` for a `hedgehog`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 autocast over fp32 weights on GPUs, fp32 on CPUs (where bf16 has no hardware)."""
    kernels: Literal["auto", "reference", "triton"] = "auto"
    """`auto`: Triton kernels on GPUs, plain PyTorch elsewhere; see `model.kernels.dispatch`."""
    deterministic: bool = False
    """The same weights to the last bit from the same start on as many ranks, on GPUs too, at some cost of speed; on
    CPUs that is so in any case."""
    collect_every: int = Field(200, ge=0)
    """Python's garbage is collected every so many steps, on all ranks at once; 0 leaves it to Python."""
    compile: bool = False
    """torch.compile makes each block's step from plain PyTorch: some per cent faster on a CPU, after a start that takes
    ten seconds and more and a C++ compiler; on GPUs it takes the place of the kernels inside the blocks."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed's ZeRO divides among ranks: nothing, moments, gradients too, weights too. On one rank nothing is
    divided, unless there are keys under deepspeed.zero_optimization."""
    recompute: RecomputeConfig = RecomputeConfig()
    threads: int | None = Field(None, ge=1, le=4096)
    """CPU threads of one rank; none means its share of the machine's cores."""
    timeout_s: float = Field(1800, gt=0)
    """A collective that takes longer ends the run."""

    @field_validator("init_from")
    @classmethod
    def _at_home(cls, value: Path | None) -> Path | None:
        return value and value.expanduser()


class EvalConfig(Section):
    """Validation during training."""

    every: int = Field(500, ge=0)
    """Steps between validations; 0 means only at the end."""
    sequences: int | None = Field(None, ge=1)
    """Validate on the first so many sequences; none means the whole split."""
    batch: int = Field(8, ge=1)
    """Sequences in one forward pass of one rank."""


class CheckpointConfig(Section):
    """What is kept, and how often."""

    every: int = Field(500, ge=1)
    """Steps between checkpoints; the last step always has one."""
    minutes: float | None = Field(None, gt=0)
    """One is written too when so long has passed since the last."""
    background: bool = True
    """Training goes on while a snapshot in memory, as large as a rank's part of the checkpoint, is written."""
    grace_s: float | None = Field(None, gt=0)
    """Seconds between a request to stop and SIGKILL where the run lives (Slurm: KillWait); a checkpoint that has taken
    longer is told as an event, since a stop would lose it."""
    keep: int = Field(3, ge=1)
    """The newest so many are kept."""
    keep_every: int | None = Field(None, ge=1)
    """Those of steps that are multiples of this are kept for ever."""
    keep_best: int = Field(0, ge=0)
    """So many with the lowest validation losses are kept; `pha average` takes their mean."""


class GuardConfig(Section):
    """Which steps are not taken, and when the run goes back."""

    max_skips: int = Field(8, ge=0)
    """A step whose loss or gradient is not finite leaves the weights alone; more than so many in a row end the run, or
    roll it back where `spike` is rollback."""
    spike: Literal["off", "skip", "rollback"] = "off"
    """What a loss far above the recent ones does: nothing; leave the weights alone; or take the run back to its last
    checkpoint, from where it goes on with the data behind the spike."""
    deviations: float = Field(6.0, gt=0)
    """So many standard deviations above the mean are far."""
    window: int = Field(128, ge=4)
    """Recent losses that are looked at; from half of it on."""
    rollbacks: int = Field(3, ge=0)
    """The run goes back at most so often; then a spike is left out instead."""


class WatchdogConfig(Section):
    """Seconds without a sign of life after which a rank writes its stacks and ends the run, by phase; 0 is never."""

    start_s: float = Field(1800, ge=0)
    """Until the first step: reading, converting and compiling included."""
    step_s: float = Field(900, ge=0)
    save_s: float = Field(1800, ge=0)
    validate_s: float = Field(900, ge=0)
    """One batch of a validation."""
    times: float = Field(20.0, ge=0)
    """A step, save or batch of a validation may take no longer than so many times the median of the last ones, ..."""
    least_s: float = Field(300.0, gt=0)
    """... but so long in any case: a change of shapes compiles anew. `times` 0 leaves only the limits above."""

    @staticmethod
    def name(phase: str) -> str:
        """The setting for a phase of `pretrain.heartbeat`."""
        return {"train": "step_s", "save": "save_s", "validate": "validate_s"}.get(phase, "start_s")

    def of(self, phase: str) -> float:
        """The limit of a phase; none where the run has ended."""
        limit: float = 0.0 if phase in ("done", "stopped") else getattr(self, self.name(phase))
        return limit


class LoggingConfig(Section):
    """What is shown and where."""

    every: int = Field(10, ge=1)
    """Steps between two lines in metrics.jsonl."""
    wandb: Literal["auto", "offline", "disabled"] = "auto"
    """`auto`: online when WANDB_API_KEY is set, else offline; it never asks."""
    project: str = "pha"
    sample_prompt: str = ""
    """After the last step the model continues this; the report shows it."""
    sample_tokens: int = Field(200, ge=0)


class RunConfig(Section):
    """Everything that decides a run; written, complete, to `config.yaml` in its directory."""

    run_dir: Path
    """The run's folder; `~` is this user's home."""
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guards: GuardConfig = GuardConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    logging: LoggingConfig = LoggingConfig()
    cluster: ClusterConfig = ClusterConfig()
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Further keys for DeepSpeed's own config; a key that this stack sets itself is refused."""

    @field_validator("run_dir")
    @classmethod
    def _at_home(cls, value: Path) -> Path:
        return value.expanduser()

    @model_validator(mode="after")
    def _distills_a_teacher(self) -> RunConfig:
        if self.train.objective == "distill":
            if self.model.architecture != "hedgehog" or self.train.init_from is None:
                raise ValueError(
                    "train.objective distill needs a model of architecture hedgehog, and train.init_from with the run "
                    "of its teacher"
                )
            if self.train.recompute.mode != "none":
                raise ValueError(
                    "train.recompute must be none when train.objective is distill, whose losses arise inside the "
                    "blocks; lower train.micro_batch to save memory"
                )
        return self

    @model_validator(mode="after")
    def _compiles_what_stays(self) -> RunConfig:
        if self.train.compile and self.train.zero_stage == 3:
            raise ValueError(
                "train.compile cannot follow weights that ZeRO 3 gathers and frees; set train.zero_stage to at most 2, "
                "or train.compile to false"
            )
        if self.train.compile and self.train.objective == "distill":
            raise ValueError("train.compile must be false when train.objective is distill, which looks into the blocks")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> RunConfig:
        micro = self.train.micro_batch
        _check_steps("train.global_batch", [step for step, _ in self.batches])
        for _, size in self.batches:
            if size < 1:
                raise ValueError(f"train.global_batch ({size}) must be at least 1")
            if micro is not None and size % micro:
                raise ValueError(f"train.global_batch ({size}) must be a multiple of train.micro_batch ({micro})")
        return self

    def logs_step(self, step: int) -> bool:
        """Whether the training record of this step, counted from 1, is written."""
        return step % self.logging.every == 0 or step in (1, self.train.steps)

    @property
    def data_changes(self) -> set[int]:
        """The steps (from 0, which is none of them) that begin another batch size, sequence length or mixture."""
        entries = [*self.batches, *changes(self.data.seq_len)]
        mixture = [entry.from_step for entry in self.data.mixture.weights] if self.data.mixture else []
        return {step for step in (*(first for first, _ in entries), *mixture) if step > 0}

    @property
    def batches(self) -> list[tuple[int, int]]:
        """The global batch as (first step, sequences)."""
        return changes(self.train.global_batch)

    @property
    def lanes(self) -> int:
        """Lanes of the data order: `data.lanes`, or the largest global batch."""
        return self.data.lanes or max(size for _, size in self.batches)
