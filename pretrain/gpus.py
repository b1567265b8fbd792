"""Known accelerators, by their makers' data sheets. It does not import torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pretrain.errors import RunError

GIB = 2**30


@dataclass(frozen=True)
class GPU:
    """One device.

    Attributes:
        name: part of what the driver calls it.
        memory: bytes that the driver reports.
        bf16: dense peak of bf16 products [FLOP/s].
        fp32: of float32 products; PyTorch's, as this project leaves them, are not TF32.
        bandwidth: of its memory [byte/s].
        link: to the others of its node, one way [byte/s]: NVLink or Infinity Fabric, else PCIe.
    """

    name: str
    memory: int
    bf16: float
    fp32: float
    bandwidth: float
    link: float


GPUS: dict[str, GPU] = {
    "h200": GPU("H200", 140 * GIB, 989e12, 67e12, 4.8e12, 450e9),
    "h100": GPU("H100", 79 * GIB, 989e12, 67e12, 3.35e12, 450e9),
    "b200": GPU("B200", 179 * GIB, 2250e12, 75e12, 8.0e12, 900e9),
    "a100": GPU("A100", 79 * GIB, 312e12, 19.5e12, 2.04e12, 300e9),
    "a100-40gb": GPU("A100-40GB", 39 * GIB, 312e12, 19.5e12, 1.56e12, 300e9),
    "l40s": GPU("L40S", 44 * GIB, 362e12, 91.6e12, 0.86e12, 32e9),
    "l4": GPU("L4", 22 * GIB, 121e12, 30.3e12, 0.30e12, 32e9),
    "mi300x": GPU("MI300X", 191 * GIB, 1307e12, 163.4e12, 5.3e12, 448e9),
}
"""By the name that `pha plan --gpu` takes. SXM (OAM) forms; the names are looked for in this order."""


def find(name: str) -> GPU:
    """The GPU of a name, in any case. Raises RunError for one that is not known."""
    found = GPUS.get(name.lower())
    if found is None:
        raise RunError(f"The GPU '{name}' is not known; give one of {', '.join(GPUS)}, or cpu.")
    return found


def peak_of(device_name: str) -> float | None:
    """Dense bf16 peak [FLOP/s] of what the driver calls so; None if it is not known."""
    matches = (gpu.bf16 for gpu in GPUS.values() if re.search(rf"{gpu.name}(?![0-9A-Za-z])", device_name))
    return next(matches, None)
