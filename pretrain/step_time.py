"""How long a step may take: a range from what it computes, moves and sends. On GPUs nothing here has been scored in
full runs; `docs/plan.md` has what it was compared with."""

from __future__ import annotations

from dataclasses import dataclass

from model.flops import flops_per_token
from pretrain.config import RunConfig
from pretrain.gpus import GPU
from pretrain.memory_plan import Memory

FAST = (0.70, 0.90, 0.0)
SLOW = (0.35, 0.40, 10e-6)
"""Of a GPU: share of its peak in matrix products, share of its bandwidth, and seconds to launch an operation."""
NETWORK = (50e9, 3e9)
"""Between nodes, for each GPU, one way [byte/s]: a 400 Gb/s port for each, and one of 200 Gb/s for a node of eight."""
GLOO = (2e9, 0.5e9)
"""Between the ranks of a CPU run [byte/s]."""
LINK_SHARE = (0.8, 0.4)
"""Of the links in a node, in collectives."""
CPU_SLOW = 1.5
"""The slow end on a CPU, whose rates are measured: products of odd sizes, and threads that wait for each other."""


@dataclass(frozen=True)
class StepTime:
    """A step of the largest batch, (fast, slow) [s].

    Attributes:
        compute: matrix products and what the model moves in memory.
        communication: of gradients and weights, which DeepSpeed as configured does not hide behind compute.
        total: their sum.
        sent: bytes that a rank sends in a step.
        flops: useful operations of all ranks in a step, recomputation left out.
        peak: FLOP/s of all ranks.
    """

    compute: tuple[float, float]
    communication: tuple[float, float]
    total: tuple[float, float]
    sent: float
    flops: float
    peak: float

    @property
    def mfu(self) -> tuple[float, float]:
        """(low, high) share of the peak."""
        fast, slow = self.total
        return self.flops / slow / self.peak, self.flops / fast / self.peak


def step_time(
    config: RunConfig,
    world: int,
    nodes: int,
    memory: Memory,
    gpu: GPU | None,
    bf16: bool = True,
    cpu: tuple[float, float] | None = None,
) -> StepTime:
    """The range for a step of the largest batch.

    Args:
        config: with a vocabulary.
        world, nodes: ranks, and the machines that they are on.
        memory: of `plan_memory`, whose trace counted what a micro-batch moves.
        gpu: the device, or None for a CPU.
        bf16: whether the GPU's products are in bf16; its peak, for the MFU, is that of bf16 in any case.
        cpu: FLOP/s and byte/s of one rank's threads on a CPU.
    """
    batch, length = max(size for _, size in config.batches), config.data.longest
    flops = flops_per_token(config.model, length)["total"] * batch * length
    done = flops / world * _again(config)
    moved, launches = memory.moved * memory.micro_batches, memory.operations * memory.micro_batches
    adam = 28 * memory.parameters / (world if memory.stage else 1)
    if gpu is None:
        assert cpu is not None
        fast = done / cpu[0] + (moved + adam) / cpu[1]
        compute, peak = (fast, CPU_SLOW * fast), cpu[0]
    else:
        fast, slow = (
            done / (share * (gpu.bf16 if bf16 else gpu.fp32))
            + (moved + adam) / (width * gpu.bandwidth)
            + launches * launch
            for share, width, launch in (FAST, SLOW)
        )
        compute, peak = (fast, slow), gpu.bf16
    sent = volume(memory, world)
    speeds = NETWORK
    if gpu is None:
        speeds = GLOO
    elif nodes == 1:
        speeds = LINK_SHARE[0] * gpu.link, LINK_SHARE[1] * gpu.link
    communication = sent / speeds[0], sent / speeds[1]
    total = compute[0] + communication[0], compute[1] + communication[1]
    return StepTime(compute, communication, total, sent, flops, peak * world)


def volume(memory: Memory, world: int) -> float:
    """Bytes that a rank sends in a step, by rings, as DeepSpeed's stages use them with this project's settings."""
    if world == 1:
        return 0.0
    ring, count = (world - 1) / world, memory.micro_batches
    whole, low = 4.0 * memory.parameters, memory.low_bytes
    if memory.stage == 0:
        return 2 * ring * whole
    if memory.stage in (1, 2):
        return 2 * ring * low * (count if memory.stage == 2 else 1) + ring * whole
    gathers = 1 if memory.parameters < 1e9 else 2  # larger models give weights back before the backward pass
    return count * ring * low * (gathers + 1)


def _again(config: RunConfig) -> float:
    """What recomputation adds to the operations: a third of a block's, for the blocks that are computed again."""
    recompute = config.train.recompute
    return 1.0 if recompute.mode == "none" else 1.0 + 1.0 / (3 * recompute.every)
