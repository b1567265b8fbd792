"""Norm, attention, feed-forward network, gated state space and block against their equations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.attention import Attention
from model.config import ModelConfig
from model.ffn import SwiGLU
from model.gss import GatedStateSpace, timescales
from model.lm import LanguageModel
from model.loss import linear_cross_entropy
from model.norm import GatedRMSNorm, RMSNorm
from model.rows import Rows, rope_tables

Build = Callable[..., LanguageModel]


@pytest.fixture
def nano(branches_apart: ModelConfig) -> ModelConfig:
    return branches_apart


def test_rms_norm() -> None:
    norm = RMSNorm(6, 1e-6)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    x = 3 * torch.randn(4, 5, 6)
    expected = x * norm.weight / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm(x, scale=torch.tensor(0.25)), 0.25 * expected)
    torch.testing.assert_close(norm(None, scale=torch.tensor(0.25)), 0.25 * norm.weight)
    normed, total = norm(x, torch.ones_like(x))
    torch.testing.assert_close(normed, norm(x + 1))
    torch.testing.assert_close(total, x + 1)
    half = norm(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, norm(x.to(torch.bfloat16).float()).to(torch.bfloat16), rtol=0, atol=0)


@torch.no_grad()
def test_gated_rms_norm() -> None:
    norm = GatedRMSNorm(6, 1e-6, groups=2)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    x, gate = 3 * torch.randn(2, 4, 5, 6)
    gated = x * F.silu(gate)
    halves = [half / (half.square().mean(-1, keepdim=True) + 1e-6).sqrt() for half in gated.chunk(2, dim=-1)]
    torch.testing.assert_close(norm(x, gate), torch.cat(halves, dim=-1) * norm.weight)
    assert norm(x.bfloat16(), gate.bfloat16()).dtype == torch.float32


@torch.no_grad()
def test_the_embedding_is_tied_and_scaled_on_the_way_in(build: Build) -> None:
    embedding = build().embedding
    tokens = torch.tensor([[3, 0, 60]])
    torch.testing.assert_close(embedding(tokens), embedding.weight[tokens] * 32**0.5)
    hidden = torch.randn(1, 3, 32)
    torch.testing.assert_close(embedding(hidden, "logits"), hidden @ embedding.weight.t())
    plain = build(embedding_scale="none").embedding
    assert torch.equal(plain(tokens), plain.weight[tokens])


def test_swiglu() -> None:
    ffn = SwiGLU(6, 10)
    x = torch.randn(3, 6)
    gate, up = ffn.gate_up.weight.split(10)
    expected = (F.silu(x @ gate.t()) * (x @ up.t())) @ ffn.down.weight.t()
    torch.testing.assert_close(ffn(x), expected)


def _slow_attention(module: Attention, x: Tensor, theta: float) -> Tensor:
    """One row, one head, one query at a time; rotations as complex numbers."""
    length, size = x.shape[0], module.head_dim
    widths = [module.heads * size, module.kv_heads * size, module.kv_heads * size]
    q, k, v = ((x @ w.t()).unflatten(-1, (-1, size)) for w in module.qkv.weight.split(widths))
    angles = torch.arange(length)[:, None] * theta ** -(torch.arange(0, size, 2) / size)
    turn = torch.polar(torch.ones_like(angles), angles)
    out = torch.zeros(length, module.heads, size)
    for head in range(module.heads):
        kv = head // (module.heads // module.kv_heads)
        queries, keys = q[:, head], k[:, kv]
        scale = size**-0.5 if module.log_scale is None else module.log_scale[head].exp().clamp(max=module.scale_max)
        cq, ck = (torch.complex(t[:, : size // 2], t[:, size // 2 :]) * turn for t in (queries, keys))
        for t in range(length):
            dots = (cq[t] * ck[: t + 1].conj()).real.sum(-1)
            if module.log_scale is not None:
                dots = dots / (queries[t].norm() * keys[: t + 1].norm(dim=-1))
            out[t, head] = (scale * dots).softmax(0) @ v[: t + 1, kv]
    return out.flatten(1) @ module.out.weight.t()


@pytest.mark.parametrize("scores", ["cosine", "plain"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.no_grad()
def test_attention(build: Build, kv_heads: int, scores: str) -> None:
    module = build(n_kv_heads=kv_heads, attention={"scores": scores}).layers[0].attention
    if scores == "cosine":
        module.log_scale[0] = 6.0  # above the clamp of log 100
    x = torch.randn(1, 9, 32)
    tables = rope_tables(torch.arange(9)[None], 8, 100.0)
    torch.testing.assert_close(module(x, Rows(*tables))[0], _slow_attention(module, x[0], 100.0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_depends_on_distances_only(build: Build) -> None:
    module = build().layers[0].attention
    x = torch.randn(1, 9, 32)
    near, far = (module(x, Rows(*rope_tables(torch.arange(9)[None] + start, 8, 1e4))) for start in (0, 1000))
    torch.testing.assert_close(near, far, rtol=1e-3, atol=1e-4)
    still = module(x, Rows(*rope_tables(torch.zeros(1, 9, dtype=torch.int64), 8, 1e4)))
    assert not torch.allclose(near, still, rtol=1e-3, atol=1e-4)


def _slow_gss(module: GatedStateSpace, x: Tensor, rglru: bool) -> Tensor:
    """Eq. 2 of the paper, one token at a time: h = sigmoid(W_g x) * (A h + B x)."""
    w_u, w_g, w_f = module.in_proj.weight.chunk(3)
    diagonal = 1.0 if module.decay is None else torch.exp(-F.softplus(module.decay))
    state = torch.zeros(w_u.shape[0])
    out = []
    for token in x:
        gate = torch.sigmoid(w_g @ token + module.gate_bias)
        scale = (1 - (gate * diagonal) ** 2).sqrt() if rglru else 1.0
        state = gate * (diagonal * state + scale * (w_u @ token))
        out.append(module.out_proj.weight @ (state * F.silu(w_f @ token)))
    return torch.stack(out)


@pytest.mark.parametrize("rglru", [False, True])
@pytest.mark.parametrize("decay", ["real", "none"])
@torch.no_grad()
def test_gss_is_equation_2(build: Build, decay: str, rglru: bool) -> None:
    module = build(gss={"decay": decay, "input_scale": "rglru" if rglru else "none"}).layers[0].gss
    x = torch.randn(1, 11, 32)
    torch.testing.assert_close(module(x)[0], _slow_gss(module, x[0], rglru), rtol=1e-4, atol=1e-5)


def test_the_rglru_scale_has_a_bounded_gradient(build: Build) -> None:
    module = build(gss={"input_scale": "rglru", "decay": "none"}).layers[0].gss
    with torch.no_grad():
        module.gate_bias.fill_(40.0)  # the gate rounds to 1, where sqrt(1 - a^2) has no derivative
    module(torch.randn(1, 5, 32)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("residual", ["normed", "raw", "none"])
@torch.no_grad()
def test_the_block_is_figure_1(build: Build, residual: str) -> None:
    model = build(main_residual=residual)
    block = model.layers[0]
    alpha = 4**0.25  # (2L)^(1/4) at L = 2
    x = torch.randn(2, 7, 32)
    tables = rope_tables(torch.arange(7)[None], 8, 1e4)
    normed = block.norm(x)
    w = model.mixing_weights()[0]
    mixed = (
        w[0] * block.norm_gss(block.gss(normed))
        + w[1] * block.norm_attention(block.attention(normed, Rows(*tables)))
        + w[2] * block.norm_ffn(block.ffn_aux(normed))
    )
    inner = alpha * x + mixed
    hidden = block.norm_main(inner)
    path = {"normed": alpha * hidden, "raw": alpha * inner, "none": torch.zeros(())}[residual]
    torch.testing.assert_close(block(x, *tables), path + block.ffn_main(hidden))


@pytest.mark.parametrize("kind", ["softplus", "softmax", "mean", "per_channel", "token_gate"])
@torch.no_grad()
def test_every_mixture_by_its_equation(build: Build, kind: str) -> None:
    block = build(mixing=kind).layers[0]
    x = torch.randn(2, 7, 32)
    p = block.mixing.p
    if kind == "mean":
        assert p is None
        weights = torch.full((3, 1, 1, 1), 1 / 3)
    elif kind == "token_gate":
        weights = torch.einsum("btd,kd->kbt", block.norm(x), p).softmax(dim=0)[..., None]
    else:
        positive = p.exp() if kind == "softmax" else (1 + p.exp()).log()
        weights = (positive / positive.sum(dim=0)).reshape(3, 1, 1, -1)
    tables = rope_tables(torch.arange(7)[None], 8, 1e4)
    normed = block.norm(x)
    branches = [
        block.norm_gss(block.gss(normed)),
        block.norm_attention(block.attention(normed, Rows(*tables))),
        block.norm_ffn(block.ffn_aux(normed)),
    ]
    inner = 4**0.25 * x + sum(w * z for w, z in zip(weights, branches, strict=True))
    hidden = block.norm_main(inner)
    torch.testing.assert_close(block(x, *tables), 4**0.25 * hidden + block.ffn_main(hidden))
    average = torch.stack([w.expand(2, 7, 32).mean() for w in weights])
    torch.testing.assert_close(block.mixing.average(), average)


def test_mixtures_start_even(build: Build) -> None:
    for kind in ("softplus", "softmax", "mean", "per_channel", "token_gate"):
        model = LanguageModel(build(mixing=kind, branches=["attention", "ffn"]).config)
        torch.testing.assert_close(model.mixing_weights(), torch.full((2, 2), 0.5))


@torch.no_grad()
def test_the_sequential_block_adds_its_parts_one_after_another(build: Build) -> None:
    block = build(composition="sequential").layers[0]
    x = torch.randn(2, 7, 32)
    tables = rope_tables(torch.arange(7)[None], 8, 1e4)
    after = x + block.attention(block.norm_attention(x), Rows(*tables))
    after = after + block.gss(block.norm_gss(after))
    after = after + block.ffn_main(block.norm_ffn(after))
    torch.testing.assert_close(block(x, *tables), after)


def test_dropout_acts_in_training_only(build: Build) -> None:
    model = build(dropout=0.3)
    tokens = torch.arange(20)[None]
    first, second = model(tokens), model(tokens)
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(tokens), model(tokens))
    torch.testing.assert_close(model(tokens), build(dropout=0.0)(tokens))


@pytest.mark.parametrize("chunk", [1, 4, 7, 8, 100])
def test_linear_cross_entropy(chunk: int) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    labels = torch.tensor([0, 8, -100, 3, 3, -100, 1])
    plain = F.cross_entropy(hidden @ weight.t(), labels, ignore_index=-100, reduction="sum")
    chunked = linear_cross_entropy(hidden, weight, labels, chunk)
    torch.testing.assert_close(chunked, plain)
    expected = torch.autograd.grad(3 * plain, leaves)
    torch.testing.assert_close(torch.autograd.grad(3 * chunked, leaves), expected)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, weight, labels, chunk), plain)


@pytest.mark.parametrize("gates", ["positive", "signed"])
def test_gates_start_at_the_timescales(build: Build, gates: str) -> None:
    module = build(gss={"gates": gates}).layers[0].gss
    memory = module.empty_memory(1, 1, torch.float32, torch.device("cpu"))
    memory.tensors["state"] = torch.ones_like(memory.tensors["state"])
    with torch.no_grad():
        module(torch.zeros(1, 1, 32), memory=memory)  # no input: the state decays by one step
    expected = torch.exp(-1 / timescales(build().config)).float()
    torch.testing.assert_close(memory.tensors["state"][0], expected)


def test_signed_gates_count_modulo_two_and_positive_ones_cannot(build: Build) -> None:
    """The state's sign after each token is that of the number of ones so far, at a length of 400."""
    bits = torch.randint(0, 2, (400,), generator=torch.Generator().manual_seed(0))
    signs = {}
    for gates in ("signed", "positive"):
        module = build(gss={"gates": gates, "decay": "none"}).layers[0].gss
        size = module.gate_bias.shape[0]
        with torch.no_grad():
            module.in_proj.weight.zero_()
            module.in_proj.weight[size : 2 * size, 0] = 1.0  # the gate reads channel 0: +20 keeps, -20 turns
            module.gate_bias.zero_()
            memory = module.empty_memory(1, 400, torch.float32, torch.device("cpu"))
            memory.tensors["state"] = torch.ones_like(memory.tensors["state"])
            seen = []
            for bit in bits.tolist():
                x = torch.zeros(1, 1, 32)
                x[..., 0] = -20.0 if bit else 20.0
                module(x, memory=memory)
                seen.append(memory.tensors["state"][0, 0].item())
        signs[gates] = torch.tensor(seen)
    expected = 1.0 - 2.0 * (bits.cumsum(0) % 2)
    torch.testing.assert_close(signs["signed"], expected, rtol=0, atol=1e-4)
    assert (signs["positive"] >= 0).all()
