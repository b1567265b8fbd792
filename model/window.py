"""Sliding-window attention by blocks: time and memory follow T * window, not T^2.

Queries are cut into blocks of C tokens. A block sees the C keys of its own place and the `window` before them, so
that one batch of small attentions, [B n, heads, C, C + window], is exactly the band of the big one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_BLOCK = 64
"""Least queries of a block: a narrow window must not make the products tiny."""


def block_size(window: int) -> int:
    """Queries of a block, C."""
    return max(window, MIN_BLOCK)


def window_mask(window: int, length: int, past: int, segments: Tensor | None, device: torch.device) -> Tensor:
    """Which keys a query may see: itself and the `window` - 1 tokens before it, of its own document.

    Args:
        window: tokens, at least 1.
        length: queries, T.
        past: remembered keys before the first query, below `window`.
        segments: document numbers [B, T], at least 0, for a call without remembered keys; None is one document.
        device: where the mask is wanted.

    Returns:
        Boolean [B or 1, 1, T, past + T] where two blocks hold all queries, and otherwise the band by blocks
        [B or 1, n, 1, C, C + window] for `banded_attention`. Every query sees at least itself, padding included, so
        that no softmax is empty.
    """
    block = block_size(window)
    banded = length > 2 * block
    rows = block if banded else length
    left = window if banded else past
    queries = torch.arange(rows, device=device)[:, None]
    keys = torch.arange(-left, rows, device=device)
    mask = (keys <= queries) & (keys > queries - window)
    if not banded:
        if segments is None:
            return mask[None, None]
        return (mask & (segments[:, :, None] == segments[:, None, :]))[:, None]
    count = -(-length // block)
    exists = keys + torch.arange(count, device=device)[:, None] * block >= -past
    mask = (mask & exists[:, None])[None]
    if segments is not None:
        padded = F.pad(segments, (0, count * block - length), value=-1)
        around = F.pad(padded, (window, 0), value=-2).unfold(1, block + window, block)
        mask = mask & (padded.unflatten(1, (count, block))[..., None] == around[:, :, None])
    return mask[:, :, None]


def banded_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """Attention within a band.

    Args:
        queries: [B, heads, T, d].
        keys, values: [B, kv_heads, past + T, d].
        mask: the blocks of `window_mask` for the same T and past.
        scale: factor on the products; None is 1/sqrt(d).

    Returns:
        [B, heads, T, d].
    """
    batch, heads, length, _ = queries.shape
    count, block, span = mask.shape[1], mask.shape[3], mask.shape[4]
    tail = count * block - length
    left = span - block - (keys.shape[2] - length)

    def around(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, left, tail)).unfold(2, span, block).permute(0, 2, 1, 4, 3).flatten(0, 1)

    mixed = F.scaled_dot_product_attention(
        F.pad(queries, (0, 0, 0, tail)).unflatten(2, (count, block)).transpose(1, 2).flatten(0, 1),
        around(keys),
        around(values),
        attn_mask=mask.expand(batch, -1, -1, -1, -1).flatten(0, 1),
        scale=scale,
        enable_gqa=heads != keys.shape[1],
    )
    return mixed.unflatten(0, (batch, count)).transpose(1, 2).flatten(2, 3)[:, :, :length]
