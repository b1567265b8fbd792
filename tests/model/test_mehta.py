"""The gated state space of Mehta et al. against its equations, and its initial memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import MehtaConfig, ModelConfig
from model.lm import LanguageModel
from model.lti import lti_kernel
from model.mehta import MehtaGSS
from model.mixer import ROWS

Build = Callable[..., LanguageModel]


def _slow(module: MehtaGSS, x: Tensor, starts: tuple[int, ...] = ()) -> Tensor:
    """One row, token by token, in complex128: `module` and x are float64."""
    weights = dict(module.named_parameters())
    lam = torch.complex(-weights["log_rate"].exp(), weights["frequency"])
    output = torch.complex(weights["C"][..., 0], weights["C"][..., 1])
    state = torch.zeros_like(output)
    out = []
    for t, token in enumerate(x):
        state = torch.zeros_like(state) if t in starts else state
        u = F.gelu(weights["narrow.weight"] @ token)
        state = lam.exp() * state + (lam.exp() - 1) / lam * u[:, None]
        y = (output * state).real.sum(-1) + weights["D"] * u
        gate = F.gelu(weights["gate.weight"] @ token)
        out.append(weights["out_proj.weight"] @ ((weights["widen.weight"] @ y) * gate))
    return torch.stack(out)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 13])
def test_values_and_gradients_are_those_of_the_equations(build: Build, length: int) -> None:
    module: Any = build(architecture="gss").layers[0].mehta
    x, start = torch.randn(1, length, 32), length // 2
    starts = torch.zeros(1, length, dtype=torch.bool)
    starts[0, start] = True
    measured = module(x, ROWS._replace(starts=starts))[0]
    weigh = torch.randn_like(measured)
    gradients = torch.autograd.grad((measured * weigh).sum(), list(module.parameters()))
    slow = module.double()
    expected = _slow(slow, x[0].double(), (start,))
    torch.testing.assert_close(measured.double(), expected, rtol=1e-4, atol=1e-5)
    slow_gradients = torch.autograd.grad((expected * weigh).sum(), list(slow.parameters()))
    for (name, _), ours, theirs in zip(module.named_parameters(), gradients, slow_gradients, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-4, msg=name)


@torch.no_grad()
def test_states_start_with_long_memories_and_outputs_of_the_inputs_size() -> None:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=7, d_model=256, n_layers=1, gss={"kind": "mehta"}, mehta=MehtaConfig(state=400))
    module = LanguageModel(config).layers[0].gss
    memories = 1 / module.log_rate.exp()
    assert 20 * 0.99 <= memories.min() < 25 and 1500 < memories.max() <= 2000 * 1.01
    assert memories.log().mean().item() == pytest.approx(math.log(200), abs=0.3)
    assert module.frequency.min() >= 0 and module.frequency.max() <= math.pi
    kernel = lti_kernel(*module._discrete(), 20_000)
    assert kernel.square().sum(dim=1).mean().item() == pytest.approx(1.0, rel=0.1)


@torch.no_grad()
def test_the_papers_random_states_forget_within_a_few_tokens() -> None:
    torch.manual_seed(0)
    settings = MehtaConfig(state=400, init="random")
    config = ModelConfig(architecture="gss", vocab_size=7, d_model=256, n_layers=1, mehta=settings)
    module = LanguageModel(config).layers[0].mehta
    memories = 1 / module.log_rate.exp()
    assert memories.median().item() == pytest.approx(1, abs=0.2) and memories.quantile(0.99) < 20
    assert module.frequency.log().std().item() == pytest.approx(1, abs=0.1)
    kernel = lti_kernel(*module._discrete(), 2_000)
    assert kernel.square().sum(dim=1).mean().item() == pytest.approx(1.0, rel=0.1)


def test_every_kth_layer_of_the_hybrid_is_a_transformer_layer(build: Build) -> None:
    hybrid = build(architecture="gss-hybrid", n_layers=7, mehta={"attention_every": 3})
    assert [layer.parts[0] for layer in hybrid.layers] == [*["mehta", "mehta", "attention"] * 2, "mehta"]
    short = build(architecture="gss-hybrid", n_layers=3)
    assert [layer.parts[0] for layer in short.layers] == ["mehta", "mehta", "attention"]
