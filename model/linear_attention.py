"""Causal linear attention over given features, as matrix products over chunks.

Attention weights phi(q_i) . phi(k_j) / sum over j' of phi(q_i) . phi(k_j') need no score matrix: the past is
the state S = sum phi(k_j) v_j^T with the normaliser z = sum phi(k_j) (arXiv 2006.16236, Eq. 16 to 20). Within a
chunk of Q tokens the weights are formed, between chunks the state is passed. A column of ones beside the values
makes z part of S. Tokens of different documents meet with a factor of 0.

The arithmetic is Q (F + P) + 2 F P multiply-adds a token and head. Autograd saves the weights within chunks
(H Q numbers a token), features and values once more in the order of chunks, the sums and the T / Q states.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model.chunking import compute_dtype, into_chunks, require_chunk, visible
from model.errors import ModelError
from model.kernels.dispatch import fused

NORMALISER_EPS = 1e-12
"""Least normaliser: weights sum to 1 wherever theirs is larger, and a token that matches nothing gets 0."""


def _pass_states(ends: Tensor, kept: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """Add up chunks: the states that enter them [B, n, K, F, P + 1], and the last one.

    `kept` [B, n] is False where a document starts in the chunk, which drops the state before.
    """
    entering = []
    kept_each = [None] * ends.shape[1] if kept is None else kept[..., None, None, None].unbind(1)
    for end, keep in zip(ends.unbind(1), kept_each, strict=True):
        entering.append(state)
        state = end + (state if keep is None else torch.where(keep, state, 0))
    return torch.stack(entering, dim=1), state


def _sums(
    phi_q: Tensor, phi_k: Tensor, v: Tensor, starts: Tensor | None, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Unnormalised outputs [B, T, H, P + 1], whose last channel is the normaliser, and the last state."""
    _, length, heads, _ = phi_q.shape
    kv_heads = phi_k.shape[2]
    share = heads // kv_heads
    queries = into_chunks(phi_q, chunk).transpose(2, 3).unflatten(2, (kv_heads, share)).flatten(3, 4)
    keys, values = (into_chunks(t, chunk).transpose(2, 3) for t in (phi_k, v))  # [B, n, K, Q, F], [..., P + 1]
    starts = None if starts is None else into_chunks(starts, chunk)
    inside = visible(starts, chunk, v.device)
    inside = inside if starts is None else inside[:, :, None, None]

    weights = (queries @ keys.transpose(-1, -2)).unflatten(3, (share, chunk))  # [B, n, K, R, Q, Q]
    weights = torch.where(inside, weights, 0).flatten(3, 4)
    sums = weights @ values

    kept = None
    if starts is not None:
        with_last = inside[..., -1, :].squeeze(2).unsqueeze(-1)  # [B, n, 1, Q, 1]: in the last token's document
        keys = torch.where(with_last, keys, 0)
        no_start = ~starts.cummax(dim=-1).values
        kept = no_start[..., -1]
        queries = torch.where(no_start.repeat(1, 1, share)[:, :, None, :, None], queries, 0)
    entering, state = _pass_states(keys.transpose(-1, -2) @ values, kept, state)
    sums = sums + queries @ entering
    sums = sums.unflatten(3, (share, chunk)).flatten(2, 3).transpose(2, 3).flatten(1, 2)
    return sums[:, :length], state


@fused("linear_attention")
def linear_attention(
    phi_q: Tensor,
    phi_k: Tensor,
    v: Tensor,
    starts: Tensor | None = None,
    initial: tuple[Tensor, Tensor] | None = None,
    chunk: int = 64,
    eps: float = NORMALISER_EPS,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Attend causally with weights proportional to phi(q) . phi(k) (arXiv 2006.16236, Section 3.3).

    The result is sum_j (phi_q . phi_k_j) v_j / max(sum_j phi_q . phi_k_j, eps) over the tokens j up to the
    query's own, in its document. Everything is float32 (float64 stays float64) under any autocast.

    Args:
        phi_q: features of the queries, at least 0, [B, T, H, F].
        phi_k: features of the keys, at least 0, [B, T, K, F]; query heads h R ... (h + 1) R - 1 share key head h,
            R = H / K.
        v: values [B, T, K, P].
        starts: boolean [B, T], True at the first token of a document; None is one document a row.
        initial: S [B, K, F, P] and z [B, K, F] before the first token; None is zeros.
        chunk: tokens of a chunk, Q. It changes speed, and nothing else beyond rounding.
        eps: see above.

    Returns:
        Outputs [B, T, H, P], and the last (S, z).

    Raises:
        ModelError: the key heads do not divide the query heads, or `chunk` is below 1.
    """
    require_chunk(chunk)
    _require_heads(phi_q, phi_k)
    dtype = compute_dtype(phi_q, phi_k, v, *(initial or ()))
    batch, length, kv_heads, channels = v.shape
    with torch.autocast(v.device.type, enabled=False):
        phi_q, phi_k = phi_q.to(dtype), phi_k.to(dtype)
        values = F.pad(v.to(dtype), (0, 1), value=1.0)
        if initial is None:
            state = values.new_zeros(batch, kv_heads, phi_k.shape[-1], channels + 1)
        else:
            state = torch.cat([initial[0].to(dtype), initial[1].to(dtype).unsqueeze(-1)], dim=-1)
        sums, state = _sums(phi_q, phi_k, values, starts, state, min(chunk, length))
        output = sums[..., :-1] / sums[..., -1:].clamp(min=eps)
    return output, (state[..., :-1], state[..., -1])


def linear_attention_reference(
    phi_q: Tensor,
    phi_k: Tensor,
    v: Tensor,
    starts: Tensor | None = None,
    initial: tuple[Tensor, Tensor] | None = None,
    eps: float = NORMALISER_EPS,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The definition of `linear_attention`: one step at a time, differentiated by autograd. Shapes as there."""
    share = phi_q.shape[2] // phi_k.shape[2]
    if initial is None:
        state, normaliser = v.new_zeros(*phi_k[:, 0].shape, v.shape[-1]), torch.zeros_like(phi_k[:, 0])
    else:
        state, normaliser = initial
    outputs = []
    for t in range(v.shape[1]):
        if starts is not None:
            state, normaliser = (s * ~starts[:, t].view(-1, *[1] * (s.ndim - 1)) for s in (state, normaliser))
        state = state + phi_k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        normaliser = normaliser + phi_k[:, t]
        seen, total = (s.repeat_interleave(share, dim=1) for s in (state, normaliser))
        numerator = (phi_q[:, t].unsqueeze(-1) * seen).sum(-2)
        outputs.append(numerator / (phi_q[:, t] * total).sum(-1, keepdim=True).clamp(min=eps))
    return torch.stack(outputs, dim=1), (state, normaliser)


def _require_heads(queries: Tensor, keys: Tensor) -> None:
    """Raise ModelError unless the key heads divide the query heads ([B, T, heads, channels])."""
    if queries.shape[2] % keys.shape[2]:
        raise ModelError(
            f"There are {queries.shape[2]} query heads and {keys.shape[2]} key heads; the key heads must divide them."
        )
