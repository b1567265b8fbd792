"""How a parallel layer's branches join the stream: normed, weighed, added, and normed for what follows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from model.kernels.dispatch import fused
from model.norm import rms_norm


@fused("fusion")
def fuse(
    outs: Sequence[Tensor],
    gains: Tensor,
    x: Tensor,
    next_gain: Tensor,
    alpha: float,
    eps: float,
    dropout: float = 0.0,
    keep_stream: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """x' = alpha x + sum_k dropout(gain_k * z_k / rms(z_k)) and h = next_gain * x' / rms(x') (arXiv 2606.16093, Eq. 4).

    Args:
        outs: the branches' outputs z_k, each [B, T, d].
        gains: of each branch [n, d], its norm's gain times its weight in the mixture.
        x: the stream before [B, T, d].
        next_gain: gain of the following norm [d].
        alpha: factor on the stream.
        eps: added to the mean squares.
        dropout: probability that a number of a branch is dropped.
        keep_stream: whether x' is wanted.

    Returns:
        h and x' [B, T, d] in the stream's dtype; None for x' that is not wanted.
    """
    mixed: Tensor | None = None
    for out, gain in zip(outs, gains.unbind(0), strict=True):
        part = F.dropout(rms_norm(out, gain, eps), dropout) if dropout else rms_norm(out, gain, eps)
        mixed = part if mixed is None else mixed + part
    assert mixed is not None
    stream = mixed.add(x, alpha=alpha)
    return rms_norm(stream, next_gain, eps), stream if keep_stream else None
