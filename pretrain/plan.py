"""What a run will need, before anything is paid for: memory, time, data, checkpoints, and whether it fits.

`pha plan` prints it. Memory is predicted by `pretrain.memory_plan` and scored against measurement; time is a range by
`pretrain.step_time`. `docs/plan.md` says how, how well, and what is not known.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_pipeline.corpus import Corpus
from data_pipeline.errors import DataError
from pretrain import data_plan
from pretrain.config import RunConfig, changes
from pretrain.data import open_corpus, resolve
from pretrain.errors import RunError
from pretrain.gpus import GIB, GPU
from pretrain.memory_plan import Memory, plan_memory
from pretrain.state import DataState
from pretrain.step_time import StepTime, step_time

UNKNOWN_VOCABULARY = 32_000
CONTEXT = 0.7 * GIB
"""Of a GPU, taken by CUDA, cuBLAS and loaded kernels."""
NCCL = 1.0 * GIB
"""Of a GPU, taken by NCCL where there are several ranks."""
FRAGMENTS = 0.08
"""Of the peak: what the caching allocator holds beyond what lives, and kernels' workspaces."""
TIGHT = 0.95
"""Of a GPU; what would be fuller may not run."""
PROCESS = 0.5 * GIB
"""Of the host, for a process with torch and DeepSpeed loaded."""
SNAPSHOT_RATE = (2e9, 0.4e9)
"""Bytes a second at which a checkpoint is copied into memory, for which training waits."""


@dataclass(frozen=True)
class Data:
    """What the data gives for the run.

    Attributes:
        tokens, sequences: of the training split; None where the dataset is not here.
        epochs: how often the run reads it.
        shards, blocks: files, and pieces that are dealt to lanes.
        document_tokens: mean length.
        problems: sentences; what could not be checked is one.
    """

    tokens: int | None = None
    sequences: int | None = None
    epochs: float | None = None
    shards: int | None = None
    blocks: int | None = None
    document_tokens: float | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """Size [bytes] of all ranks' files, of the main rank's, and of all that are kept; (fast, slow) stall [s]."""

    size: int
    main_rank: int
    kept: int
    count: int
    stall: tuple[float, float]


@dataclass(frozen=True)
class Plan:
    """Everything that `pha plan` shows.

    Attributes:
        fixed: name → bytes that the process takes beside the model.
        needed: bytes of a rank's device, all in all.
        room: bytes that the device has; None for a CPU.
        advice: what to change where it does not fit, with what that would come to.
        token_budget: of the whole run.
        wall_s: (fast, slow) of the whole run.
        notes: what was assumed or changed to make a plan at all.
    """

    nodes: int
    world: int
    gpu: GPU | None
    bf16: bool
    memory: Memory
    fixed: dict[str, int]
    needed: int
    room: int | None
    advice: list[str]
    time: StepTime
    tokens_per_step: int
    token_budget: int
    wall_s: tuple[float, float]
    checkpoint: Checkpoint
    data: Data
    notes: list[str]

    @property
    def verdict(self) -> str:
        """Whether it fits, in words."""
        if self.room is None:
            return "not judged: the memory of the CPU's host is shared by all its ranks"
        share = self.needed / self.room
        return "fits" if share <= TIGHT else "is tight" if share <= 1 else "does NOT fit"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "verdict": self.verdict, "mfu": self.time.mfu}


def make(config: RunConfig, gpu: GPU | None, cpu: Callable[[], tuple[float, float]]) -> Plan:
    """The plan of a run on `cluster.nodes` nodes.

    Args:
        config: the run.
        gpu: the device of a rank, or None for CPUs.
        cpu: gives FLOP/s and byte/s of this machine, where the plan is for a CPU.

    Raises:
        RunError: settings that contradict each other.
    """
    world = config.cluster.nodes * config.cluster.ranks
    notes: list[str] = []
    config, data = _with_data(config, notes)
    config = _divisible(config, world, notes)
    bf16 = config.train.precision == "bf16" or (config.train.precision == "auto" and gpu is not None)
    _note_what_is_not_modelled(config, notes)

    def memory_of(candidate: RunConfig) -> Memory:
        length = data.document_tokens or 1000.0
        return plan_memory(candidate, world, gpu=gpu is not None, bf16=bf16, document_tokens=length)

    memory = memory_of(config)
    fixed = _fixed(memory, world, gpu)
    room, needed = None if gpu is None else gpu.memory, memory.peak + sum(fixed.values())
    advice = []
    if room is not None and needed > TIGHT * room:
        advice = _advice(config, world, lambda other: _total(memory_of(other), world, gpu))
    time = step_time(config, world, config.cluster.nodes, memory, gpu, bf16, cpu() if gpu is None else None)
    batch = max(size for _, size in config.batches)
    if time.communication[0] > time.compute[0]:
        notes.append(
            f"Collectives take longer than computing, even on a fast network: {world} ranks are many for batches of "
            f"{batch:,} sequences; larger batches or fewer ranks cost less."
        )
    per_step, budget, checkpoint = batch * config.data.longest, token_budget(config), _checkpoint(config, memory, world)
    saves = math.ceil(config.train.steps / config.checkpoint.every)
    fast, slow = (
        budget / per_step * seconds + saves * stall for seconds, stall in zip(time.total, checkpoint.stall, strict=True)
    )
    return Plan(
        nodes=config.cluster.nodes,
        world=world,
        gpu=gpu,
        bf16=bf16,
        memory=memory,
        fixed=fixed,
        needed=needed,
        room=room,
        advice=advice,
        time=time,
        tokens_per_step=per_step,
        token_budget=budget,
        wall_s=(fast, slow),
        checkpoint=checkpoint,
        data=data,
        notes=notes,
    )


def token_budget(config: RunConfig) -> int:
    """Tokens that the run reads: steps x batch x length, whatever their schedules."""
    steps = config.train.steps
    bounds = sorted({0, *(first for first, _ in (*config.batches, *changes(config.data.seq_len)) if first < steps)})
    spans = zip(bounds, [*bounds[1:], steps], strict=True)
    return sum(
        (data_plan.sequences_before(config, end) - data_plan.sequences_before(config, begin))
        * config.data.length_at(begin)
        for begin, end in spans
    )


def _note_what_is_not_modelled(config: RunConfig, notes: list[str]) -> None:
    if config.train.objective != "lm":
        notes.append("Distillation is not modelled: the plan is that of training the language model.")
    if config.train.compile:
        notes.append("train.compile is not modelled: the plan is that of the kernels, or of plain PyTorch.")
    if "offload_optimizer" in config.deepspeed.get("zero_optimization", {}):
        notes.append("Offloading of the optimizer is not modelled: its state is counted as if on the device.")


def _with_data(config: RunConfig, notes: list[str]) -> tuple[RunConfig, Data]:
    """The config with a vocabulary, and what the dataset says about itself."""
    try:
        corpus = open_corpus(config.data)
        config = resolve(config, corpus)
        return config, _data(config, corpus)
    except (DataError, OSError) as error:
        problem = f"The data could not be looked into ({str(error).rstrip('.')}): epochs and shards are not checked."
    if config.model.vocab_size is None:
        notes.append(f"The vocabulary is the dataset's, which is not here: {UNKNOWN_VOCABULARY:,} is assumed.")
        model = config.model.model_copy(update={"vocab_size": UNKNOWN_VOCABULARY})
        config = config.model_copy(update={"model": model})
    return config, Data(problems=(problem,))


def _data(config: RunConfig, corpus: Corpus) -> Data:
    splits, problems = corpus.splits("train"), []
    tokens = sum(split.tokens for split in splits.values())
    sequences = tokens // config.data.longest
    shards = sum(len({int(block["shard"]) for block in split.blocks}) for split in splits.values())
    blocks = sum(len(split.blocks) for split in splits.values())
    epochs = token_budget(config) / max(1, tokens)
    batch = max(size for _, size in config.batches)
    try:
        data_plan.stream(config, corpus, DataState())
    except DataError as error:
        problems.append(f"The data cannot be read so: {error}")
    if sequences < batch:
        problems.append(
            f"An epoch has {sequences:,} sequences, fewer than one batch ({batch:,}): every batch repeats text."
        )
    if blocks < config.lanes:
        problems.append(
            f"There are {blocks:,} blocks for {config.lanes:,} lanes (data.lanes, by default the batch): some lanes "
            "are empty and neighbours in the text end up in one batch; build the data with smaller blocks."
        )
    if epochs > 4:
        problems.append(f"The run reads its text {epochs:.1f} times; beyond about four, repeated text teaches less.")
    documents = sum(split.documents for split in splits.values())
    return Data(tokens, sequences, epochs, shards, blocks, tokens / max(1, documents), tuple(problems))


def _divisible(config: RunConfig, world: int, notes: list[str]) -> RunConfig:
    """The config with batches that the ranks divide, so that there is something to plan; a note says what changed."""
    multiple = world * (config.train.micro_batch or 1)
    if all(size % multiple == 0 for _, size in config.batches):
        return config
    raised = [(first, -(-size // multiple) * multiple) for first, size in config.batches]
    words = ", ".join(str(size) for _, size in config.batches)
    larger = ", ".join(str(size) for _, size in raised)
    before, most = token_budget(config), max(size for _, size in raised)
    steps = max(1, round(before / (most * config.data.longest)))
    per = f"{world} ranks" + (f" x train.micro_batch {config.train.micro_batch}" if config.train.micro_batch else "")
    notes.append(
        f"This run would NOT start: train.global_batch ({words}) is no multiple of {multiple} ({per}). The plan is of "
        f"train.global_batch={larger} and train.steps={steps:,}, which are as many tokens; the learning rate and its "
        "warm-up may need another value then. Fewer ranks keep the batch."
    )
    batches = [{"from_step": first, "value": size} for first, size in raised]
    tree = config.model_dump()
    tree["train"] |= {"global_batch": batches if len(batches) > 1 else raised[0][1], "steps": steps}
    return RunConfig.model_validate(tree)


def _fixed(memory: Memory, world: int, gpu: GPU | None) -> dict[str, int]:
    if gpu is None:
        return {"the process": int(PROCESS)}
    found = {"CUDA, cuBLAS, kernels": int(CONTEXT), "fragments and workspaces": int(FRAGMENTS * memory.peak)}
    return {**found, "NCCL": int(NCCL)} if world > 1 else found


def _total(memory: Memory, world: int, gpu: GPU | None) -> int:
    return memory.peak + sum(_fixed(memory, world, gpu).values())


def _advice(config: RunConfig, world: int, total: Callable[[RunConfig], int]) -> list[str]:
    """Single changes, and what the whole would come to with each."""
    train, found = config.train, []
    options: dict[str, dict[str, Any]] = {}
    if train.recompute.mode == "none":
        options["train.recompute.mode=full"] = {"train": {"recompute": {"mode": "full"}}}
    share = max(size for _, size in config.batches) // world
    micro = train.micro_batch or share
    if micro > 1:
        half = max(size for size in range(1, micro // 2 + 1) if share % size == 0)
        options[f"train.micro_batch={half}"] = {"train": {"micro_batch": half}}
    if world > 1 and train.zero_stage < 3:
        options[f"train.zero_stage={train.zero_stage + 1}"] = {"train": {"zero_stage": train.zero_stage + 1}}
    zero = config.deepspeed.get("zero_optimization", {})
    if world > 1 and "reduce_bucket_size" not in zero:
        smaller = {"deepspeed": {"zero_optimization": {"reduce_bucket_size": 50_000_000}}}
        options["deepspeed.zero_optimization.reduce_bucket_size=50000000"] = smaller
    for words, change in options.items():
        try:
            changed = RunConfig.model_validate(_merged(config.model_dump(), change))
            found.append(f"{words} would need {total(changed) / GIB:.1f} GiB")
        except (RunError, ValueError):
            continue
    return found


def _merged(tree: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return {
        **tree,
        **{k: _merged(tree.get(k) or {}, v) if isinstance(v, dict) else v for k, v in change.items()},
    }


def _checkpoint(config: RunConfig, memory: Memory, world: int) -> Checkpoint:
    """Weights alone, DeepSpeed's weights and moments, and from stage 1 on its fp32 copy of the weights."""
    whole = 4 * memory.parameters
    if memory.stage == 0:
        size, main = 4 * whole, 4 * whole
    elif memory.stage == 3:
        size, main = 4 * whole, whole + 3 * whole // world
    else:
        size, main = 5 * whole, 2 * whole + 3 * whole // world
    settings, steps = config.checkpoint, config.train.steps
    count = settings.keep + settings.keep_best + (steps // settings.keep_every if settings.keep_every else 0)
    count = min(count, math.ceil(steps / settings.every))
    return Checkpoint(size, main, size * count, count, (main / SNAPSHOT_RATE[0], main / SNAPSHOT_RATE[1]))
