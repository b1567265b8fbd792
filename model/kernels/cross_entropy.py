"""The softmax part of the head's loss as a Triton kernel: logits become their own gradient.

A program reads a row of logits twice (once for the logarithm of the sum of exponentials, online, and once to write the
gradient over it) and writes it once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.launch import launch, power_of_2

BLOCK = 4096
"""Logits that a program holds at a time."""


# fmt: off
@triton.jit
def _softmax_kernel(logits, labels, losses, V, IGNORE: tl.constexpr,
                    BLOCK: tl.constexpr, GRADIENT: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    counts = label != IGNORE
    largest = tl.full([BLOCK], -float("inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(logits + row * V + columns, mask=columns < V, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(largest, x)
        # each lane keeps its own sum; a lane that has seen nothing has no largest to subtract
        seen = higher > -float("inf")
        total = tl.where(seen, total * tl.exp(largest - tl.where(seen, higher, 0.0))
                         + tl.exp(x - tl.where(seen, higher, 0.0)), 0.0)
        largest = higher
    top = tl.max(largest, axis=0)
    log_sum = top + tl.log(tl.sum(total * tl.exp(largest - top), axis=0))
    at_label = tl.load(logits + row * V + tl.where(counts, label, 0)).to(tl.float32)
    tl.store(losses + row, tl.where(counts, log_sum - at_label, 0.0))
    if GRADIENT:
        tl.debug_barrier()  # the label's logit is read before it is overwritten
        for start in range(0, V, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            x = tl.load(logits + row * V + columns, mask=columns < V, other=-float("inf")).to(tl.float32)
            gradient = tl.exp(x - log_sum) - tl.where(columns == label, 1.0, 0.0)
            tl.store(logits + row * V + columns, tl.where(counts, gradient, 0.0), mask=columns < V)


# fmt: on
def softmax_loss_(logits: Tensor, labels: Tensor, ignore: int, gradient: bool) -> Tensor:
    """See `model.loss.softmax_loss_`."""
    rows, size = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    block = min(BLOCK, power_of_2(size))
    constants = {"IGNORE": ignore, "BLOCK": block, "GRADIENT": gradient}
    launch(_softmax_kernel, (rows,), logits, labels, losses, size, **constants, warps=max(1, min(8, block // 256)))
    return losses
