"""The SSD of Mamba-2 on the kernels of `chunked`."""

from __future__ import annotations

from torch import Tensor

from model.kernels.chunked import chunked


def supports(x: Tensor, *_: object, **__: object) -> str | None:
    """Why inputs are not for these kernels, or None."""
    if x.shape[1] == 1:
        return "a single token, which needs no chunks"
    return None if x.shape[-1] <= 128 else f"heads of {x.shape[-1]} channels"


def ssd(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    starts: Tensor | None = None,
    initial: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """See `model.ssd.ssd`. `chunk` is without effect."""
    return chunked(c, b, x, dt, a, starts, initial)
