"""Selective attention: few tokens attend, chosen by a gate; the others pass by (Taipan, arXiv 2410.18572).

Positions are cut into tiles. The selected queries of a tile are gathered, attend to the slice of keys that the
tile's window reaches, and are scattered back: cost and memory follow the number of selected tokens, and no score
matrix is larger than the queries of a tile times its keys. All rows share the slices, so that keys and values are
never copied; a row with fewer selected tokens than another in a tile fills up with other ones, whose output is dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from model.chunking import compute_dtype, into_chunks, segment_ids
from model.errors import ModelError

QUERY_MULTIPLE = 8
"""Gathered queries of a tile come in multiples of it. In matrix products of odd sizes the rounding of a row depends
on the number of rows, and a choice in one document would show in the last digits of another."""


@dataclass(frozen=True)
class Selection:
    """Which tokens attend.

    Attributes:
        mask: boolean [B, T], True where a token attends.
        weight: float [B, T], 1 or 0 as `mask`, with the gradient of the soft probability of attending. Multiply
            the attention's output by it, so that the gate learns from what attention contributes.
        alpha: float [B, T], the share of attention's output in the mix (1 - alpha) h + alpha o, with its own
            gradient; neither noise nor temperature enters it.
    """

    mask: Tensor
    weight: Tensor
    alpha: Tensor


def gumbel_noise(shape: torch.Size, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Draws from Gumbel(0, 1), -log(E) of exponential E, in float32."""
    return -torch.empty(shape, device=device).exponential_(generator=generator).log()


def select(logits: Tensor, tau: float = 1.0, noise: Tensor | None = None) -> Selection:
    """Choose by straight-through Gumbel-softmax (arXiv 2410.18572, Eq. 1 to 3; arXiv 1611.01144).

    A token attends where logit 1 plus noise is above logit 0 plus noise. Without noise, as in evaluation and
    generation, this is the likelier choice; a tie does not attend.

    Args:
        logits: [B, T, 2], for passing by and for attending.
        tau: temperature of the soft probability that the gradient sees; the choice does not depend on it.
        noise: `gumbel_noise` of the logits' shape, or None.

    Returns:
        The selection, in float32 (float64 stays float64).

    Raises:
        ModelError: `tau` is not above 0.
    """
    if not tau > 0:
        raise ModelError(f"The temperature tau is {tau}; it must be above 0.")
    logits = logits.to(compute_dtype(logits))
    margin = logits[..., 1] - logits[..., 0]
    alpha = torch.sigmoid(margin)  # the softmax of two is the sigmoid of their difference
    if noise is not None:
        margin = margin + (noise[..., 1] - noise[..., 0]).to(margin.dtype)
    mask = margin > 0
    soft = torch.sigmoid(margin / tau)
    return Selection(mask, mask.to(soft.dtype) + (soft - soft.detach()), alpha)


def budget_loss(weight: Tensor, budget: float) -> Tensor:
    """(C - share of tokens that attend)^2 of one layer; the sum over layers is Eq. 7 of arXiv 2410.18572.

    Args:
        weight: `Selection.weight` [B, T]; the share is over all of it.
        budget: C, between 0 and 1.

    Returns:
        A scalar, whose gradient reaches the gate through the soft probabilities.
    """
    return (budget - weight.mean()).square()


@dataclass(frozen=True)
class _Tile:
    """Selected queries of a stretch of positions.

    Attributes:
        slots: where the queries lie among all gathered ones.
        reach: the keys that the window of any of them holds, of past and row.
        seen: boolean [B, 1, M, keys], which of those a query sees.
        used: boolean [B, M], False for queries that only fill up a row.
        places: position of each query in its row [B, M].
    """

    slots: slice
    reach: slice
    seen: Tensor
    used: Tensor
    places: Tensor


def _tiles(mask: Tensor, segments: Tensor | None, past: int, window: int, size: int) -> list[_Tile]:
    """Tiles of `size` positions that hold a selected query, in order; the arguments are as in their users."""
    length = mask.shape[1]
    selected = F.pad(into_chunks(mask, size), (0, -size % QUERY_MULTIPLE))  # [B, n, size, and room to fill up]
    counts = selected.sum(-1)
    order = torch.argsort(selected, dim=-1, descending=True, stable=True)  # a tile's selected tokens come first
    tiles, used = [], 0
    for index, most in enumerate(counts.amax(0).tolist()):
        if most == 0:
            continue
        begin, end = index * size, min((index + 1) * size, length)
        most += -most % QUERY_MULTIPLE
        places = (order[:, index, :most] + begin).clamp(max=end - 1)
        reach = slice(max(0, begin + past - window + 1), end + past)
        keys = torch.arange(reach.start, reach.stop, device=mask.device)
        queries = places.unsqueeze(-1) + past
        seen = (keys <= queries) & (keys > queries - window)
        if segments is not None:
            seen = seen & (segments.gather(1, places + past).unsqueeze(-1) == segments[:, None, reach])
        filled = torch.arange(most, device=mask.device) < counts[:, index, None]
        tiles.append(_Tile(slice(used, used + most), reach, seen.unsqueeze(1), filled, places))
        used += most
    return tiles


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Masked attention of [B, H, M, D] to [B, K, S, D], without autocast, which is off in a backward pass."""
    with torch.autocast(q.device.type, enabled=False):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def _attend_backward(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v of `_attend`, for the gradient [B, H, M, D] of its result."""
    groups = (k.shape[1], q.shape[1] // k.shape[1])
    dtype = compute_dtype(q)
    rows, grad_rows = (t.unflatten(1, groups).flatten(2, 3) for t in (q * scale, grad.to(q.dtype)))  # [B, K, R M, D]
    scores = (rows @ k.transpose(-1, -2)).unflatten(2, (groups[1], -1)).to(dtype)  # [B, K, R, M, S]
    weights = scores.masked_fill_(~seen.unsqueeze(1), -math.inf).softmax(-1).flatten(2, 3)
    grad_v = weights.to(q.dtype).transpose(-1, -2) @ grad_rows
    of_weights = (grad_rows @ v.transpose(-1, -2)).to(dtype)
    mean = torch.linalg.vecdot(weights, of_weights).unsqueeze(-1)
    of_scores = of_weights.sub_(mean).mul_(weights).to(q.dtype)
    grad_q = (of_scores @ k * scale).unflatten(2, (groups[1], -1)).flatten(1, 2)
    return grad_q, of_scores.transpose(-1, -2) @ rows, grad_v


class _TiledAttention(torch.autograd.Function):
    """Attention tile by tile: queries [B, H, M, D], keys and values [B, K, S, D].

    The backward pass takes the weights of a tile from its scores again, and adds its gradients into one tensor
    for all keys. Autograd would make a tensor of the size of all keys for each tile's slice of them, which is
    quadratic in the length.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, tiles: list[_Tile], scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.tiles, ctx.scale = tiles, scale  # type: ignore[attr-defined]
        parts = [_attend(q[:, :, t.slots], k[:, :, t.reach], v[:, :, t.reach], t.seen, scale) for t in tiles]
        return torch.cat(parts, dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v = ctx.saved_tensors  # type: ignore[attr-defined]
        scale: float = ctx.scale  # type: ignore[attr-defined]
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        with torch.autocast(q.device.type, enabled=False):
            for tile in ctx.tiles:  # type: ignore[attr-defined]
                of_q, of_k, of_v = _attend_backward(
                    q[:, :, tile.slots],
                    k[:, :, tile.reach],
                    v[:, :, tile.reach],
                    tile.seen,
                    scale,
                    grad[:, :, tile.slots],
                )
                grad_q[:, :, tile.slots] = of_q
                grad_k[:, :, tile.reach] += of_k
                grad_v[:, :, tile.reach] += of_v
        return grad_q, grad_k, grad_v, None, None


def _require_shapes(q: Tensor, k: Tensor, window: int, tile: int) -> None:
    """Raise ModelError where `selected_attention` says so."""
    if window < 1:
        raise ModelError(f"The attention window is {window}; it must be at least 1 token.")
    if tile < 1:
        raise ModelError(f"The tile is {tile}; it must be at least 1 token.")
    if q.shape[2] % k.shape[2]:
        raise ModelError(
            f"There are {q.shape[2]} query heads and {k.shape[2]} key heads; the key heads must divide them."
        )


def selected_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    window: int,
    starts: Tensor | None = None,
    past: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    tile: int = 256,
) -> Tensor:
    """Softmax attention of the selected tokens over a sliding window (arXiv 2410.18572, Eq. 4).

    Scores and softmax are those of `scaled_dot_product_attention` in the dtype of q, under any autocast. Autograd
    saves the gathered queries, k, v and a boolean [M, S] a tile, and no scores. The counts of the tiles cost a
    GPU one synchronisation.

    Args:
        q: queries [B, T, H, D]; those of tokens that are not selected do not matter.
        k, v: keys and values [B, T, K, D]; query heads h R ... (h + 1) R - 1 share key head h, R = H / K.
        mask: boolean [B, T], True for selected tokens.
        window: a token sees itself and the window - 1 tokens before it, in its document.
        starts: boolean, True at the first token of a document, [B, T], or [B, S + T] with the past; None is one
            document a row. With [B, T] all of the past belongs to the document that the row goes on with.
        past: keys and values of the S tokens before the row [B, S, K, D]; window - 1 of them suffice.
        scale: factor on the scores; None is 1/sqrt(D).
        tile: positions of a tile. It changes speed, and nothing else beyond rounding.

    Returns:
        [B, T, H, D]; exactly 0 for tokens that are not selected.

    Raises:
        ModelError: the window or tile is below 1, or the key heads do not divide the query heads.
    """
    _require_shapes(q, k, window, tile)
    before = 0
    if past is not None:
        before = past[0].shape[1]
        k, v = torch.cat([past[0].to(k.dtype), k], dim=1), torch.cat([past[1].to(v.dtype), v], dim=1)
    segments = None
    if starts is not None:
        segments = segment_ids(F.pad(starts, (before, 0)) if starts.shape[1] == q.shape[1] else starts)
    tiles = _tiles(mask, segments, before, window, min(tile, q.shape[1]))
    shape = (*q.shape[:3], v.shape[3])
    if not tiles:  # the sum of nothing gives q, k and v zero gradients instead of none
        return q.new_zeros(shape) + sum(t[:, :0].sum() for t in (q, k, v))
    places, used = (
        torch.cat(each, dim=1)[..., None, None] for each in zip(*((t.places, t.used) for t in tiles), strict=True)
    )
    queries = q.gather(1, places.expand(-1, -1, *q.shape[2:])).transpose(1, 2)
    keys, values = (t.to(q.dtype).transpose(1, 2) for t in (k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    output = _TiledAttention.apply(queries, keys, values, tiles, scale).transpose(1, 2)
    output = torch.where(used, output, 0)
    return output.new_zeros(shape).scatter_add(1, places.expand_as(output), output)  # the same place may fill up twice


def selected_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    window: int,
    starts: Tensor | None = None,
    past: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
) -> Tensor:
    """The definition of `selected_attention`: all scores, masked, in the dtype of the inputs. Shapes as there."""
    before = 0
    if past is not None:
        before = past[0].shape[1]
        k, v = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
    share = q.shape[2] // k.shape[2]
    k, v = (t.repeat_interleave(share, dim=2) for t in (k, v))
    keys = torch.arange(k.shape[1], device=q.device)
    queries = keys[before:, None]
    seen = (keys <= queries) & (keys > queries - window)
    if starts is not None:
        if starts.shape[1] == q.shape[1]:
            starts = F.pad(starts, (before, 0))
        segments = starts.cumsum(1)
        seen = seen & (segments[:, before:, None] == segments[:, None, :])
    scores = torch.einsum("bthd,bshd->bhts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    weights = scores.masked_fill(~(seen if seen.ndim == 2 else seen.unsqueeze(1)), -math.inf).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", weights, v) * mask[..., None, None]
