"""The output head's cross-entropy without the tensor of all logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from model.kernels.dispatch import fused

IGNORE = -100
"""Label of a token that does not count."""

LOSS_CHUNK = 1024
"""Tokens whose logits exist at a time."""


@fused("cross_entropy")
def softmax_loss_(logits: Tensor, labels: Tensor, ignore: int, gradient: bool) -> Tensor:
    """Each row's -log softmax(logits)[label], at least float32 [N]; 0 where the label is `ignore`.

    Args:
        logits: [N, V]; where `gradient` is True, overwritten by the gradient of the sum of the losses.
        labels: integers [N].
        ignore: label of a row that does not count.
        gradient: whether it is wanted.
    """
    counts = labels != ignore
    index = labels.masked_fill(~counts, 0)[:, None]
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_probs = F.log_softmax(logits, dim=-1, dtype=wide)
    losses = -log_probs.gather(1, index).squeeze(1).masked_fill(~counts, 0)
    if gradient:
        probs = log_probs.exp_()
        probs.scatter_add_(1, index, probs.new_full((), -1.0).expand_as(index))
        logits.copy_(probs.mul_(counts[:, None]))
    return losses


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of the matrix products: autocast's where it is on, the input's otherwise."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies, with both gradients computed chunk by chunk in the forward pass.

    A softmax cross-entropy's gradient is known once its logits are, so that a chunk's logits are used for the
    loss and for both gradients and then forgotten: memory is one chunk, and the head's products are not repeated
    (the scheme of Liger-Kernel, arXiv 2410.10989). The backward pass only scales; it needs no weight, which also means
    that a sharded weight is not gathered a second time.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int, with_grad: bool
    ) -> Tensor:
        dtype = _compute_dtype(hidden)
        wide = torch.promote_types(dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(dtype)
            total = torch.zeros((), dtype=wide, device=hidden.device)
            grad_hidden = torch.empty_like(hidden) if with_grad else None
            grad_weight = torch.zeros_like(weight, dtype=wide) if with_grad else None
            for start in range(0, hidden.shape[0], chunk):
                rows = slice(start, start + chunk)
                part = hidden[rows].to(dtype)
                logits = F.linear(part, matrix)
                total += softmax_loss_(logits, labels[rows], IGNORE, with_grad).sum()
                if grad_hidden is None or grad_weight is None:
                    continue
                grad_hidden[rows] = (logits @ matrix).to(hidden.dtype)
                grad_weight += logits.t() @ part
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors  # type: ignore[attr-defined]
        return (
            grad_hidden * grad.to(grad_hidden.dtype),
            grad_weight * grad.to(grad_weight.dtype),
            None,
            None,
            None,
        )


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int = LOSS_CHUNK) -> Tensor:
    """Sum over the labels of -log softmax(hidden weight^T)[label], in nats.

    Args:
        hidden: [N, d].
        weight: [V, d].
        labels: integers [N], or -100 where a token does not count.
        chunk: tokens whose logits are held at a time.

    Returns:
        A scalar, float32 (float64 for float64 inputs). Gradients flow to `hidden` and `weight`, once.
    """
    with_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _LinearCrossEntropy.apply(hidden, weight, labels, chunk, with_grad)
