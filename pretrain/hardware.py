"""What the machine could do at best, the denominator of MFU, and what a process has used of it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import sys
import time
from pathlib import Path

import torch

from pretrain.errors import RunError
from pretrain.gpus import peak_of

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def usable_cores() -> int:
    """CPU cores that this process may use: its affinity where the system tells (Linux), else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def require_compiler(device: torch.device) -> None:
    """Raise RunError where torch.compile has no C++ compiler for a CPU."""
    if device.type == "cpu" and not any(
        shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")
    ):
        raise RunError("train.compile needs a C++ compiler on a CPU; install g++, or set train.compile=false.")


def keep_memory() -> None:
    """Let the C library keep what a training step frees, for the next one (glibc; elsewhere nothing is done).

    By default each array of some megabytes is asked of the system anew, which maps it page by page: on a CPU that is
    about a tenth of a small model's step. What a process holds stays at its peak.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def peak_memory() -> int:
    """The most memory [bytes] that this process has held so far: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:  # what getrusage tells is at least what the process had that started this one
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def peak_flops(device: torch.device) -> float:
    """The device's peak [FLOP/s]: from the data sheet if it is known, else what a matrix product reaches.

    A CPU's figure is therefore measured, on this rank's threads, in the type that the run computes in.
    """
    if device.type == "cuda":
        known = peak_of(torch.cuda.get_device_name(device))
        if known is not None:
            return known
    return _measured(device)


def memory_bandwidth(size: int = 2**26, repeats: int = 5) -> float:
    """What the main memory moves, read and written together [byte/s], measured on this process's threads."""
    source, target = torch.ones(size // 4), torch.empty(size // 4)
    best = 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        target.copy_(source)
        best = max(best, 2.0 * size / (time.perf_counter() - started))
    return best


def _measured(device: torch.device, size: int = 1024, repeats: int = 5) -> float:
    a = torch.ones(size, size, device=device)
    best = 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        float((a @ a)[0, 0])
        best = max(best, 2.0 * size**3 / (time.perf_counter() - started))
    return best
