"""Hedgehog: features whose linear attention imitates softmax attention, and the loss that teaches them.

The feature map is trained so that the weights of linear attention match those of softmax attention on the same
queries and keys (arXiv 2402.04347, Section 4.2). That needs both weight matrices [B, H, T, T]: distil on short
rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.chunking import compute_dtype, visible
from model.linear_attention import NORMALISER_EPS, _require_heads


def hedgehog_features(y: Tensor) -> Tensor:
    """Features of a learned map's output y = W x + b: softmax over concat(y, -y).

    Section 4.2 of arXiv 2402.04347 has exp of concat(y, -y), without the sum. For a query the two are the same
    attention, because its sum cancels in the normalised weights; for a key the softmax form divides its weight
    by its sum, and is bounded. (flash-linear-attention takes the softmax of concat(2 y, -2 y); a learned W takes
    up the factor.) The largest |y| is subtracted before exponentials are taken.

    Args:
        y: [..., d].

    Returns:
        [..., 2 d] in float32 (float64 stays float64), each above or at 0, summing to 1.
    """
    y = y.to(compute_dtype(y))
    return torch.softmax(torch.cat([y, -y], dim=-1), dim=-1)


def _mask(starts: Tensor | None, length: int, device: torch.device) -> Tensor:
    """Which key a query may see: [T, T], or [B, 1, T, T] with document starts [B, T]."""
    if starts is None:
        return visible(None, length, device)
    return visible(starts.unsqueeze(1), length, device)


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Inner products [B, H, T, T] of [B, T, H, F] and [B, T, K, F], in at least float32."""
    _require_heads(queries, keys)
    dtype = compute_dtype(queries, keys)
    heads, kv_heads = queries.shape[2], keys.shape[2]
    with torch.autocast(queries.device.type, enabled=False):
        grouped = queries.to(dtype).transpose(1, 2).unflatten(1, (kv_heads, heads // kv_heads))
        columns = keys.to(dtype).transpose(1, 2).transpose(-1, -2).unsqueeze(2)
        return (grouped @ columns).flatten(1, 2)


def attention_weights_of_features(
    phi_q: Tensor, phi_k: Tensor, starts: Tensor | None = None, eps: float = NORMALISER_EPS
) -> Tensor:
    """The weights that `model.linear_attention.linear_attention` gives to each key, with no state before the row.

    Args:
        phi_q: features of the queries [B, T, H, F].
        phi_k: features of the keys [B, T, K, F].
        starts: boolean [B, T], True at the first token of a document; None is one document a row.
        eps: least normaliser.

    Returns:
        [B, H, T, T], rows are queries; 0 for later tokens and other documents.
    """
    weights = _scores(phi_q, phi_k)
    weights = torch.where(_mask(starts, weights.shape[-1], weights.device), weights, 0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=eps)


def softmax_attention_weights(q: Tensor, k: Tensor, starts: Tensor | None = None, scale: float | None = None) -> Tensor:
    """The weights of causal softmax attention, the teacher of the feature map.

    Args:
        q: queries [B, T, H, D].
        k: keys [B, T, K, D].
        starts: boolean [B, T], True at the first token of a document; None is one document a row.
        scale: factor on the scores; None is 1/sqrt(D).

    Returns:
        [B, H, T, T], rows are queries; 0 for later tokens and other documents.
    """
    scores = _scores(q, k) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    return scores.masked_fill(~_mask(starts, scores.shape[-1], scores.device), -math.inf).softmax(-1)


def distillation_losses(teacher: Tensor, student: Tensor, eps: float = NORMALISER_EPS) -> Tensor:
    """Cross entropy of the student's weights with the teacher's as soft labels (arXiv 2402.04347, Section 4.2).

    It is -sum_j teacher_ij log(student_ij) for each query i; what the teacher does not see (later tokens, other
    documents) adds exactly 0. Its least value is the teacher's entropy. No gradient flows to the teacher.

    Args:
        teacher: [B, H, T, T], each row sums to 1.
        student: [B, H, T, T], each row sums to 1.
        eps: weights of the student below it count as it.

    Returns:
        [B, H, T], in nats.
    """
    return -(teacher.detach() * student.clamp(min=eps).log()).sum(-1)


def distillation_loss(teacher: Tensor, student: Tensor, eps: float = NORMALISER_EPS) -> Tensor:
    """The mean of `distillation_losses` over batch, heads and queries: a scalar, in nats a query."""
    return distillation_losses(teacher, student, eps).mean()
