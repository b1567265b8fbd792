"""The same operations by other projects, where they are installed: flash-linear-attention and Liger-Kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Run = Callable[..., list[Tensor]]


def peers(name: str) -> dict[str, Run]:
    """Those that have the operation of a case, by their project's name; each takes the case's leaves."""
    found: dict[str, Run] = {}
    for project, make in (("flash-linear-attention", _fla), ("Liger-Kernel", _liger)):
        try:
            run = make(name)
        except ImportError:
            continue
        if run is not None:
            found[project] = run
    return found


def _fla(name: str) -> Run | None:
    if name == "gated scan":
        from fla.ops.hgrn import chunk_hgrn

        def scan(projected: Tensor, bias: Tensor, rate: Tensor) -> list[Tensor]:
            """Without documents, which its chunked form cannot have; gates and filter in PyTorch."""
            u, g, f = projected.chunk(3, dim=-1)
            gate = F.logsigmoid(g + bias)
            h, _ = chunk_hgrn((gate.exp() * u).contiguous(), (gate + rate.log()).contiguous())
            return [(h * F.silu(f)).to(projected.dtype)]

        return scan
    if name == "SSD":
        from fla.ops.simple_gla import chunk_simple_gla

        def ssd(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
            """Without documents; b and c are given to every head, and all is bf16, as its kernels want."""
            heads, half = x.shape[2], torch.bfloat16
            q, k = (t.expand(-1, -1, heads, -1).to(half) for t in (c, b))
            y, _ = chunk_simple_gla(q, k, (x * dt.unsqueeze(-1)).to(half), dt * a, scale=1.0)
            return [y]

        return ssd
    if name == "linear attention":
        from fla.ops.linear_attn import chunk_linear_attn

        def attend(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
            """Without documents and without the normaliser; keys and values are given to every head."""
            share, half = q.shape[2] // k.shape[2], torch.bfloat16
            k, v = (t.repeat_interleave(share, dim=2) for t in (k, v))
            y, _ = chunk_linear_attn(q.to(half), k.to(half), v.to(half), scale=1.0, normalize=False)
            return [y]

        return attend
    return None


def _liger(name: str) -> Run | None:
    if name == "RMSNorm":
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        return lambda x, gain: [LigerRMSNormFunction.apply(x, gain, 1e-6, 0.0, "llama", False)]
    if name.startswith("SwiGLU"):
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        def swiglu(gate_up: Tensor) -> list[Tensor]:
            """Gate and input apart, as its kernel wants."""
            gate, up = gate_up.chunk(2, dim=-1)
            return [LigerSiLUMulFunction.apply(gate.contiguous(), up.contiguous())]

        return swiglu
    return None


def versions() -> dict[str, str]:
    """Of what is installed."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {}
    for package in ("torch", "triton", "flash-linear-attention", "liger-kernel"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
