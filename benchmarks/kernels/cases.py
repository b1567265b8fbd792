"""Each kernel's operation at the shapes of a preset, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from model.attention import masked_attention
from model.config import ModelConfig
from model.ffn import swiglu
from model.fusion import fuse
from model.gated_scan import gated_scan
from model.kernels import dispatch
from model.linear_attention import linear_attention
from model.loss import softmax_loss_
from model.norm import add_rms_norm, rms_norm
from model.presets import preset
from model.rotary import qk_norm_rope
from model.rows import describe_rows, rope_tables
from model.ssd import ssd


@dataclass(frozen=True)
class Case:
    """An operation with its inputs.

    Attributes:
        name: in tables.
        run: the operation of its leaves; which form runs is `model.kernels.dispatch`'s choice.
        leaves: tensors whose gradients are wanted.
        fixed: other tensors that are read.
        tokens: of the inputs.
        per_layer: how often a PHA layer does this in a step; 0 where no PHA layer does.
        pointwise: each number of the result depends on its own token's alone, so that the floor can be reached.
        unread: of the leaves [bytes]: what the operation hands on without reading it in the forward pass.
    """

    name: str
    run: Callable[..., Sequence[Tensor]]
    leaves: list[Tensor]
    fixed: list[Tensor] = field(default_factory=list)
    tokens: int = 0
    per_layer: int = 1
    pointwise: bool = False
    unread: int = 0


class _Maker:
    """Inputs of the dtypes that training under bf16 autocast has: projections in bf16, stream and parameters fp32."""

    def __init__(self, config: ModelConfig, batch: int, length: int, device: torch.device, half: torch.dtype) -> None:
        self.config, self.shape, self.device, self.half = config, (batch, length), device, half
        self.generator = None if device.type == "meta" else torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, grad: bool = True) -> Tensor:
        """Standard normal numbers."""
        x = torch.randn(*shape, generator=self.generator, device=self.device, dtype=torch.float32)
        return x.to(dtype).requires_grad_(grad)

    def rows(self, width: int, half: bool = True) -> Tensor:
        """A tensor [B, T, width]."""
        return self.normal(*self.shape, width, dtype=self.half if half else torch.float32)

    def starts(self) -> Tensor:
        """A document about every 500 tokens."""
        if self.device.type == "meta":
            return torch.empty(self.shape, dtype=torch.bool, device=self.device)
        return torch.rand(self.shape, generator=self.generator, device=self.device) < 1 / 500


def _norms(make: _Maker) -> Iterator[Case]:
    width = make.config.d_model
    x, gain = make.rows(width, half=False), make.normal(width)
    yield Case("RMSNorm", lambda x, g: [rms_norm(x, g, 1e-6)], [x, gain], pointwise=True)
    leaves = [make.rows(width, half=False), make.rows(width), make.normal(width)]
    run: Any = lambda x, y, g: add_rms_norm(x, y, g, 1e-6)  # noqa: E731
    yield Case("add + RMSNorm", run, leaves, per_layer=0, pointwise=True)


def _scan(make: _Maker) -> Iterator[Case]:
    size, starts = make.config.gss_size, make.starts()
    leaves = [make.rows(3 * size), make.normal(size), make.normal(size).detach().sigmoid().requires_grad_()]
    yield Case("gated scan", lambda p, b, r: [gated_scan(p, b, r, starts)[0]], leaves, [starts])


def _rotary(make: _Maker) -> Iterator[Case]:
    heads, kv, size = make.config.n_heads, make.config.n_kv_heads, make.config.head_dim
    qkv, scale = make.rows((heads + 2 * kv) * size), make.normal(heads)
    positions = torch.arange(make.shape[1], device=make.device).expand(make.shape)
    cos, sin = rope_tables(positions, size, make.config.rope_theta)
    values = qkv.numel() * kv // (heads + 2 * kv) * qkv.element_size()
    run: Any = lambda qkv, scale: qk_norm_rope(qkv, heads, kv, scale, cos, sin)  # noqa: E731
    yield Case("QK norm + RoPE", run, [qkv, scale], [cos, sin], pointwise=True, unread=values)


def _swiglu(make: _Maker) -> Iterator[Case]:
    for name, width in (("auxiliary", make.config.ffn_aux_size), ("main", make.config.ffn_main_size)):
        yield Case(f"SwiGLU, {name}", lambda x: [swiglu(x)], [make.rows(2 * width)], pointwise=True)


def _fusion(make: _Maker) -> Iterator[Case]:
    width = make.config.d_model
    leaves = [make.rows(width, half=False), make.normal(3, width), make.normal(width)]
    leaves += [make.rows(width) for _ in range(3)]
    alpha = make.config.deepnorm_alpha
    run: Any = lambda x, g, n, *outs: [fuse(outs, g, x, n, alpha, 1e-6, keep_stream=False)[0]]  # noqa: E731
    yield Case("fusion epilogue", run, leaves, pointwise=True)


def _cross_entropy(make: _Maker) -> Iterator[Case]:
    rows, size = min(1024, make.shape[0] * make.shape[1]), make.config.vocab_size or 50_257
    logits = make.normal(rows, size, dtype=make.half, grad=False)
    labels = torch.zeros(rows, dtype=torch.int64, device=make.device)
    yield Case(
        *("softmax of the loss", lambda: [softmax_loss_(logits, labels, -100, True), logits], []),
        fixed=[logits, labels],
        tokens=rows,
        per_layer=0,
    )


def _ssd(make: _Maker) -> Iterator[Case]:
    config = preset("mamba2-125m") if make.config.d_model > 256 else preset("mamba2-tiny")
    heads, groups, state = config.ssd_heads, config.ssd.groups, config.ssd.state
    batch, length = make.shape
    x = make.normal(batch, length, heads, config.ssd.head_dim)
    dt = make.normal(batch, length, heads).detach().sigmoid().mul(0.1).requires_grad_()
    a = make.normal(heads).detach().sigmoid().neg().requires_grad_()
    b, c = (make.normal(batch, length, groups, state) for _ in range(2))
    starts = make.starts()
    yield Case("SSD", lambda x, dt, a, b, c: [ssd(x, dt, a, b, c, starts)[0]], [x, dt, a, b, c], [starts], per_layer=0)


def _linear_attention(make: _Maker) -> Iterator[Case]:
    config = preset("hedgehog-125m") if make.config.d_model > 256 else preset("hedgehog-tiny")
    heads, kv, size = config.n_heads, config.n_kv_heads, config.head_dim
    shapes = ((heads, 2 * size), (kv, 2 * size))
    phi_q, phi_k = (make.normal(*make.shape, *shape).detach().abs().requires_grad_() for shape in shapes)
    starts = make.starts()
    leaves = [phi_q, phi_k, make.normal(*make.shape, kv, size, dtype=make.half)]
    run: Any = lambda q, k, v: [linear_attention(q, k, v, starts)[0]]  # noqa: E731
    yield Case("linear attention", run, leaves, [starts], per_layer=0)


def cases(
    config: ModelConfig, batch: int, length: int, device: torch.device, half: torch.dtype = torch.bfloat16
) -> Iterator[Case]:
    """All cases at the widths of `config`; those of other architectures take the preset of their own of that size."""
    make = _Maker(config, batch, length, device, half)
    for group in (_norms, _scan, _rotary, _swiglu, _fusion, _cross_entropy, _ssd, _linear_attention):
        for case in group(make):
            yield case if case.tokens else _with_tokens(case, batch * length)


def attention(
    config: ModelConfig, batch: int, length: int, device: torch.device, half: torch.dtype = torch.bfloat16
) -> Iterator[Case]:
    """Attention within documents, and within a window of them: PyTorch's own kernels, by dense masks or by tiles."""
    make = _Maker(config, batch, length, device, half)
    tokens = torch.zeros(batch, length, dtype=torch.int64, device=device)
    documents = make.starts().cumsum(1)
    for name, window in (("attention in documents", None), (f"attention, window of {length // 4}", length // 4)):
        attending = ModelConfig(**{**config.model_dump(), "attention": {"window": window}})
        queries = make.normal(batch, config.n_heads, length, config.head_dim, dtype=half)
        keys, values = (make.normal(batch, config.n_kv_heads, length, config.head_dim, dtype=half) for _ in range(2))
        masks: dict[str, Any] = {}

        def run(q: Tensor, k: Tensor, v: Tensor, known: Any = attending, masks: Any = masks) -> list[Tensor]:
            mode = dispatch.mode()
            if mode not in masks:  # once a batch, for all layers
                masks[mode] = describe_rows(known, tokens, documents, 0).mask
            return [masked_attention(q, k, v, masks[mode], 1.0)]

        yield Case(name, run, [queries, keys, values], [documents], batch * length)


def _with_tokens(case: Case, tokens: int) -> Case:
    return Case(**{**vars(case), "tokens": tokens})


def gradients(case: Case, outputs: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of the leaves, from ones behind every output."""
    if not case.leaves:
        return []
    ones = [torch.ones_like(output) for output in outputs]
    return list(torch.autograd.grad(list(outputs), case.leaves, ones, allow_unused=True))


def floor(case: Case, outputs: Sequence[Tensor]) -> tuple[int, int]:
    """Bytes if each input is read once and each output written once, forward and backward.

    The backward pass reads the inputs again and the gradients of the outputs, and writes those of the leaves.
    """
    inputs = sum(_bytes(tensor) for tensor in (*case.leaves, *case.fixed))
    results = sum(_bytes(tensor) for tensor in outputs)
    given = sum(_bytes(tensor) for tensor in case.leaves)
    # what is only handed on is no result of the forward pass, and its gradient is read and written in the backward one
    return inputs + results - 2 * case.unread, inputs - case.unread + results + given


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
