"""Documents and windows on a GPU: FlexAttention leaves out the tiles of the score matrix that nobody may see.

A dense mask costs T^2 bytes a row and has every score computed, and those of SDPA's kernels that take one are the
slower ones. Here the mask is a list of tiles for each row of tiles, made once a batch for all layers, and what is
inside a tile follows from the tokens' documents.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.kernels import dispatch

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

TILE = 128
"""Queries, and keys, of a tile."""

NAME = "flex_attention"


def wanted(length: int, device: torch.device) -> bool:
    """Whether masks of `length` tokens are better described by tiles: on a GPU, and from two of them."""
    return device.type == "cuda" and length >= 2 * TILE and dispatch.compiles(NAME)


def tile_mask(length: int, window: int | None, segments: Tensor | None, device: torch.device) -> BlockMask:
    """What each query may see: itself and what is before it in its document, and in its window.

    Args:
        length: T, of queries and keys.
        window: how many tokens a query sees, itself included; None is all.
        segments: integers [B, T] that do not decrease along a row, one number a document; None is one document.
        device: of the mask.

    Returns:
        FlexAttention's mask of B rows (1 without segments) and any number of heads.
    """
    from torch.nn.attention.flex_attention import BlockMask

    count = -(-length // TILE)
    first = torch.arange(count, device=device) * TILE
    last = (first + TILE - 1).clamp(max=length - 1)
    q_first, q_last, k_first, k_last = first[:, None], last[:, None], first, last
    some = (k_first <= q_last)[None]
    every = (k_last <= q_first)[None]
    if window is not None:
        some = some & (q_first - k_last < window)
        every = every & (q_last - k_first < window)
    if segments is not None:
        begin, end = segments[:, first], segments[:, last]
        some = some & (begin[:, :, None] <= end[:, None])  # later keys are excluded above
        every = every & (begin[:, None] == end[:, :, None])
    if length % TILE:  # what is behind the row's end must be masked
        every = every & (torch.arange(count, device=device) < count - 1) & (first[:, None] < first[-1])
    some, every = (which.expand(-1 if segments is None else len(segments), count, count) for which in (some, every))
    partly, whole = _tiles(some & ~every), _tiles(every)
    mod = _rule(window, segments)
    return BlockMask.from_kv_blocks(*partly, *whole, BLOCK_SIZE=TILE, mask_mod=mod, seq_lengths=(length, length))


def _tiles(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles are chosen in each row of tiles, and their columns, first those: [B, 1, n] and [B, 1, n, n]."""
    columns = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[:, None], columns.int()[:, None].contiguous()


def _rule(window: int | None, segments: Tensor | None) -> Callable[..., Tensor]:
    """Whether query q of row b may see key k, for tensors of indices."""

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = k <= q
        if window is not None:
            seen = seen & (q - k < window)
        if segments is not None:
            seen = seen & (segments[b, q] == segments[b, k])
        return seen

    return visible


@functools.cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def tiled_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: BlockMask, scale: float | None) -> Tensor:
    """Attention where `mask` allows it.

    Where FlexAttention does not compile, it is given up for this process, with a warning, and the mask is filled in, as
    it is on a CPU, for which FlexAttention has no backward pass.

    Args:
        queries: [B, heads, T, d].
        keys, values: [B, kv_heads, T, d].
        mask: of `tile_mask`.
        scale: factor on the products; None is 1/sqrt(d).

    Returns:
        [B, heads, T, d].
    """
    from torch.nn.attention.flex_attention import create_mask

    grouped = queries.shape[1] != keys.shape[1]
    if queries.device.type == "cuda" and queries.dtype != torch.float64 and dispatch.compiles(NAME):
        try:
            mixed: Tensor = _compiled()(queries, keys, values, block_mask=mask, scale=scale, enable_gqa=grouped)
            return mixed
        except Exception as error:
            dispatch.give_up(NAME, error)
    rows, length = mask.shape[0], queries.shape[2]
    dense = create_mask(mask.mask_mod, rows, 1, length, length, queries.device)
    return F.scaled_dot_product_attention(queries, keys, values, dense, scale=scale, enable_gqa=grouped)
