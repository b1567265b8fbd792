"""One matrix product for all branches that read the same normed stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F


class _PackedLinear(torch.autograd.Function):
    """A product whose result is handed out in parts, and whose gradient takes the parts one by one.

    Autograd's own way back from `split` puts the parts' gradients together in a tensor of their joint size, which is
    read and written once more; here each part's gradient is multiplied where it lies.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weight)
        ctx.sizes = sizes  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return F.linear(x, weight).split(sizes, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        wants_x, wants_weight = ctx.needs_input_grad[:2]  # type: ignore[attr-defined]
        flat = x.reshape(-1, x.shape[-1])
        grad_weight = torch.empty_like(weight) if wants_weight else None
        grad_x: Tensor | None = None
        begin = 0
        for size, grad in zip(ctx.sizes, grads, strict=True):  # type: ignore[attr-defined]
            rows = slice(begin, begin + size)
            begin += size
            if grad is None:  # nobody read this part
                if grad_weight is not None:
                    grad_weight[rows] = 0
                continue
            grad = grad.reshape(-1, size)
            if grad_weight is not None:
                torch.mm(grad.T, flat, out=grad_weight[rows])
            if wants_x and grad_x is None:
                grad_x = grad @ weight[rows]
            elif grad_x is not None:
                grad_x.addmm_(grad, weight[rows])
        return None if grad_x is None else grad_x.view_as(x), grad_weight, None


def packed_linear(x: Tensor, weight: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """x W^T, cut into parts.

    Args:
        x: [..., d].
        weight: the parts' matrices [size, d], one below the other.
        sizes: each part's channels; their sum is the height of `weight`.

    Returns:
        A tensor [..., size] for each part. They are views of one: their rows are sum(sizes) numbers apart.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    if torch.compiler.is_compiling():  # the compiler makes its own backward pass
        return F.linear(x, weight).split(list(sizes), dim=-1)
    parts: tuple[Tensor, ...] = _PackedLinear.apply(x, weight, tuple(sizes))
    return parts


class PackedLinear(nn.Linear):
    """The maps of several readers of one stream, as one matrix without a bias.

    Args:
        maps: `nn.Linear`s without biases and of one width, whose weights it takes over.
    """

    def __init__(self, maps: Sequence[nn.Linear]) -> None:
        nn.Module.__init__(self)
        self.sizes = [one.out_features for one in maps]
        self.in_features, self.out_features = maps[0].in_features, sum(self.sizes)
        self.weight = nn.Parameter(torch.cat([one.weight.detach() for one in maps]))
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]  # parts, in the order of `maps`
        """Map x [..., d] to a tensor [..., size] for each of `maps`."""
        return packed_linear(x, self.weight, self.sizes)
