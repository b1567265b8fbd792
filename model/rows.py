"""What every layer must know about the rows of a batch, worked out once for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from model import architectures, flex
from model.config import ModelConfig
from model.window import window_mask

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class Rows(NamedTuple):
    """Where documents and calls begin, in the forms that mixers want; None where nothing needs saying.

    Blocks take the fields as positional arguments: activation checkpointing keeps or recomputes each by itself.

    Attributes:
        cos, sin: rotary tables of `rope_tables`; None without rotary positions.
        mask: what a query may see: boolean [B or 1, 1, T, S], S counting the remembered tokens too, or the blocks
            [B or 1, n, 1, C, C + window] of `model.window`, or the tiles of `model.flex`. None is the causal mask
            when T > 1, and everything when T = 1.
        keep: float32 [B, T, 1], 0 at the first token of a document and 1 elsewhere; None is one document a row.
        starts: the same as boolean [B, T], True at the first token of a document.
    """

    cos: Tensor | None = None
    sin: Tensor | None = None
    mask: Tensor | BlockMask | None = None
    keep: Tensor | None = None
    starts: Tensor | None = None


def rope_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, position * theta^(-2i / head_dim) (arXiv 2104.09864, Eq. 15).

    Args:
        positions: integers [B, T], or [1, T] where all rows agree.
        head_dim: channels of a head, even.
        theta: base of the frequencies.

    Returns:
        Two float32 tensors [B, T, 1, head_dim / 2]; channel i turns with channel i + head_dim / 2.
    """
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64) / head_dim
    angles = positions[:, :, None, None] * theta**-exponent  # in float32 the millionth angle is off by 0.03
    return angles.cos().float(), angles.sin().float()


def describe_rows(config: ModelConfig, tokens: Tensor, documents: Tensor | None, before: int) -> Rows:
    """The `Rows` of a call of the model.

    Args:
        config: the model; what none of its mixers needs is not made.
        tokens: [B, T]; only shape and device count.
        documents: integers [B, T], one number a document; None is one document a row.
        before: tokens that a cache has seen; 0 with documents.
    """
    length, device = tokens.shape[1], tokens.device
    steps = torch.arange(length, device=device)
    starts = segments = keep = None
    positions = (steps + before)[None]
    if documents is not None:
        starts = torch.ones_like(documents, dtype=torch.bool)
        starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
        segments = starts.cumsum(1)
        positions = steps - torch.where(starts, steps, 0).cummax(1).values
        keep = (~starts)[:, :, None].to(torch.float32)
    cos = sin = mask = None
    parts = architectures.parts(config)
    if "attention" in parts:
        mask = _attention_mask(config.attention.window, length, before, segments, device)
    if parts & {"attention", "hedgehog"} and config.attention.positions == "rotary":
        cos, sin = rope_tables(positions, config.head_dim, config.rope_theta)
    return Rows(cos, sin, mask, keep, starts)


def _attention_mask(
    window: int | None, length: int, before: int, segments: Tensor | None, device: torch.device
) -> Tensor | BlockMask | None:
    """`Rows.mask` for these segments [B, T] or for `before` remembered tokens."""
    narrow = window is not None and before + length > window
    if before == 0 and (narrow or segments is not None) and flex.wanted(length, device):
        return flex.tile_mask(length, window if narrow else None, segments, device)
    if narrow and window is not None:
        # A single token's memory holds what it may see, and no more.
        return None if length == 1 else window_mask(window, length, min(before, window - 1), segments, device)
    steps = torch.arange(before + length, device=device)
    if segments is not None:
        return ((segments[:, :, None] == segments[:, None, :]) & (steps[:, None] >= steps))[:, None]
    if before > 0 and length > 1:
        return (steps <= steps[before:, None])[None, None]
    return None
