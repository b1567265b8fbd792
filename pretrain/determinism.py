"""The one place that decides what may differ between two runs of the same configuration."""

from __future__ import annotations

import gc
import os

import torch


def settle(deterministic: bool) -> None:
    """Before anything is computed: what torch may choose between is fixed where `deterministic` asks for it.

    On a CPU with a fixed number of threads, sums are in a fixed order anyway. On a GPU, convolutions, scatters and
    cuBLAS are what differs; operations without a deterministic form raise an error then.
    """
    torch.use_deterministic_algorithms(deterministic)
    # Filling fresh memory is for finding mistakes, and costs a pass over every tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a module's property
    torch.backends.cudnn.benchmark = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts


class Collector:
    """Runs Python's garbage collector at the same steps on all ranks, and never between.

    When each rank collects when it likes, one of many is always late, and all wait for it.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        if every:
            gc.collect()
            gc.freeze()  # what is here now stays: it need not be looked through again
            gc.disable()

    def step(self, step: int) -> None:
        """Collects if the step is one of the chosen."""
        if self.every and step % self.every == 0:
            gc.collect()

    def close(self) -> None:
        """Gives the work back to Python."""
        if self.every:
            gc.unfreeze()
            gc.enable()
