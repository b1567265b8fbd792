"""The gated state space of Mehta et al. against its equations, and its initial memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import MehtaConfig, ModelConfig
from model.lm import LanguageModel
from model.lti import lti_kernel
from model.mehta import MehtaGSS

Build = Callable[..., LanguageModel]


def _slow(module: MehtaGSS, x: Tensor) -> Tensor:
    """One row, token by token, in complex128."""
    weights = {name: value.detach().double() for name, value in module.named_parameters()}
    lam = torch.complex(-weights["log_rate"].exp(), weights["frequency"])
    output = torch.complex(weights["C"][..., 0], weights["C"][..., 1])
    state = torch.zeros_like(output)
    out = []
    for token in x.double():
        u = F.gelu(weights["narrow.weight"] @ token)
        state = lam.exp() * state + (lam.exp() - 1) / lam * u[:, None]
        y = (output * state).real.sum(-1) + weights["D"] * u
        gate = F.gelu(weights["gate.weight"] @ token)
        out.append(weights["out_proj.weight"] @ ((weights["widen.weight"] @ y) * gate))
    return torch.stack(out)


@torch.no_grad()
def test_the_mixer_is_its_equations(build: Build) -> None:
    module = build(gss={"kind": "mehta"}).layers[0].gss
    x = torch.randn(1, 11, 32)
    torch.testing.assert_close(module(x)[0].double(), _slow(module, x[0]), rtol=1e-4, atol=1e-5)


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
