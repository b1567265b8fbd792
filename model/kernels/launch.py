"""How kernels are launched: in one place, so that launches can be described without a GPU, or counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

Grid = tuple[int, ...] | Callable[[dict[str, Any]], tuple[int, ...]]


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: the function that `triton.jit` made.
        grid: its programs.
        arguments: by name, tensors and constants too.
        warps, stages: of the compiler.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int
    stages: int


@dataclass(frozen=True)
class Tuned:
    """A kernel whose tile and warps are measured on the GPU, once for each value of its keys, and kept on disk.

    Where nothing is measured (described, interpreted) the first choice counts.

    Attributes:
        kernel: the function that `triton.jit` made.
        choices: constants, and "warps".
        tuner: what `triton.autotune` made of both.
    """

    kernel: Any
    choices: tuple[dict[str, int], ...]
    tuner: Any


def tuned(*choices: dict[str, int], key: tuple[str, ...]) -> Callable[[Any], Tuned]:
    """Let the GPU choose among `choices` for each value of the arguments in `key`, few of them: see `bucket`."""

    def decorate(kernel: Any) -> Tuned:
        configs = [
            triton.Config({k: v for k, v in choice.items() if k != "warps"}, num_warps=choice["warps"], num_stages=2)
            for choice in choices
        ]
        return Tuned(kernel, choices, triton.autotune(configs, key=list(key), cache_results=True)(kernel))

    return decorate


def bucket(size: int) -> int:
    """The power of two above a size: sizes of one bucket are tuned once."""
    return power_of_2(size)


_watchers: list[Callable[[Launch], None]] = []


@contextlib.contextmanager
def describing() -> Iterator[list[Launch]]:
    """Inside, kernels are not run: what would have been launched is put into the list. Tensors may be "meta"."""
    launches: list[Launch] = []
    with watching(launches.append):
        yield launches


@contextlib.contextmanager
def watching(watcher: Callable[[Launch], None]) -> Iterator[None]:
    """Inside, kernels are not run: `watcher` is told of what would have been launched, and nothing is kept."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def launch(kernel: Any, grid: Grid, *args: Any, warps: int = 4, stages: int = 2, **constants: Any) -> None:
    """Run the programs of `grid`, a tuple or a function of the constants."""
    if isinstance(kernel, Tuned):
        if not _watchers and not triton.knobs.runtime.interpret:
            kernel.tuner[grid](*args, **constants)
            return
        chosen = dict(kernel.choices[0])
        warps, kernel = chosen.pop("warps"), kernel.kernel
        constants = {**constants, **chosen}
    if not _watchers:
        kernel[grid](*args, **constants, num_warps=warps, num_stages=stages)
        return
    names = list(kernel.arg_names)
    arguments = {**dict(zip(names, args, strict=False)), **constants}
    programs = grid(arguments) if callable(grid) else grid
    for watcher in _watchers:
        watcher(Launch(kernel, programs, arguments, warps, stages))


def power_of_2(least: int) -> int:
    """The smallest power of two that is at least `least`."""
    return 1 << max(0, least - 1).bit_length()


def blocks(size: int, block: int) -> int:
    """How many blocks cover `size`."""
    return -(-size // block)


def evenly_spaced(x: Tensor) -> Tensor:
    """x [..., n], copied unless its rows are whole and all `row_stride(x)` apart: a part of wider rows is."""
    for dim in range(x.ndim - 2):
        if x.shape[dim] > 1 and x.stride(dim) != x.shape[dim + 1] * x.stride(dim + 1):
            return x.contiguous()
    return x if x.stride(-1) == 1 else x.contiguous()


def row_stride(x: Tensor) -> int:
    """How many numbers lie from the begin of one row of x [..., n] to that of the next."""
    return x.stride(-2) if x.ndim > 1 else x.shape[-1]


def processors(tensor: Tensor) -> int:
    """Multiprocessors of the tensor's device; 2 where it is no GPU, so that loops over rows are tested."""
    if tensor.device.type != "cuda":
        return 132 if tensor.device.type == "meta" else 2
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


def programs_over_rows(tensor: Tensor, rows: int, waves: int = 8) -> int:
    """Programs of a kernel that loops over rows: enough to fill the device, and few partial sums to add up."""
    return max(1, min(rows, waves * processors(tensor)))


def version() -> str:
    """Triton's version."""
    return str(triton.__version__)
