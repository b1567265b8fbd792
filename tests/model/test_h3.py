"""H3 against its equations, token by token, and its layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model.architectures import layers
from model.cache import Memory
from model.config import ModelConfig
from model.h3 import H3
from model.lm import LanguageModel
from model.mixer import ROWS

Build = Callable[..., LanguageModel]


def _slow(module: H3, x: Tensor, starts: list[int]) -> Tensor:
    """One row [T, d], one head and token at a time, in complex128."""
    weights = dict(module.named_parameters())
    queries, keys, values = (x @ weights["in_proj.weight"].T).chunk(3, dim=-1)
    lam = torch.complex(-weights["log_rate"].exp(), weights["frequency"])
    step = weights["log_step"].exp()[:, None]
    output = torch.complex(weights["C"][..., 0], weights["C"][..., 1])
    size = module.head_dim
    state = torch.zeros(len(step), size, size, lam.shape[1], dtype=lam.dtype)
    begin, rows = 0, []
    for t in range(len(x)):
        if t in starts:
            begin, state = t, torch.zeros_like(state)
        shifted = weights["shift_D"] * keys[t]
        for lag in range(min(t - begin + 1, weights["shift_C"].shape[1])):
            shifted = shifted + weights["shift_C"][:, lag] * keys[t - lag]
        heads, row = [], []
        for head in range(len(step)):
            own = slice(head * size, (head + 1) * size)
            outer = torch.outer(shifted[own], values[t, own])
            decay = (step[head] * lam[head]).exp()
            heads.append(decay * state[head] + (decay - 1) / lam[head] * outer[..., None])
            y = 2 * (output[head] * heads[-1]).sum(-1).real + weights["D"][head] * outer
            row.append(queries[t, own] @ y)
        state = torch.stack(heads)
        rows.append(weights["out_proj.weight"] @ torch.cat(row))
    return torch.stack(rows)


@pytest.mark.parametrize("settings", [{}, {"head_dim": 4}, {"shift": 1, "chunk": 64}])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 13])
def test_values_and_gradients_are_those_of_the_equations(build: Build, settings: dict[str, Any], length: int) -> None:
    module: Any = build(architecture="h3", h3=settings).layers[0].h3
    x = torch.randn(1, length, 32)
    starts = torch.zeros(1, length, dtype=torch.bool)
    starts[0, length // 2] = True
    measured = module(x, ROWS._replace(starts=starts))[0]
    weigh = torch.randn_like(measured)
    gradients = torch.autograd.grad((measured * weigh).sum(), list(module.parameters()))
    slow = module.double()
    expected = _slow(slow, x[0].double(), [length // 2])
    torch.testing.assert_close(measured.double(), expected, rtol=1e-4, atol=1e-5)
    slow_gradients = torch.autograd.grad((expected * weigh).sum(), list(slow.parameters()))
    for (name, _), ours, theirs in zip(module.named_parameters(), gradients, slow_gradients, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-4, msg=name)


@torch.no_grad()
def test_the_state_of_earlier_tokens_enters(build: Build) -> None:
    module: Any = build(architecture="h3", h3={"head_dim": 2}).layers[0].h3
    x = torch.randn(2, 9, 32)
    memory: Memory = module.empty_memory(2, 9, torch.float32, x.device)
    parts = [module(part, ROWS, memory) for part in x.split([4, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), module(x), rtol=1e-4, atol=1e-5)


def test_it_starts_as_published() -> None:
    torch.manual_seed(0)
    module: Any = LanguageModel(_config(d_model=512)).layers[0].h3
    steps = module.log_step.exp()
    assert 1e-3 <= steps.min() < 2e-3 and 0.05 < steps.max() <= 0.1
    assert torch.equal(module.log_rate, torch.full((512, 32), math.log(0.5)))
    torch.testing.assert_close(module.frequency[7], math.pi * torch.arange(32.0))
    assert module.shift_C.abs().max() <= 1 / 8 and module.shift_C.std().item() == pytest.approx(
        1 / 8 / 3**0.5, rel=0.02
    )
    assert module.C.std().item() == pytest.approx(0.5**0.5, rel=0.02)


def test_attention_stands_at_the_chosen_layers() -> None:
    published = layers(_config("h3-hybrid", n_layers=12))
    assert [index for index, layer in enumerate(published) if layer.parts[0] == "attention"] == [6]
    safari = layers(_config("h3-hybrid", n_layers=12, h3={"attention_layers": [1, 8]}))
    assert [index for index, layer in enumerate(safari) if layer.parts[0] == "attention"] == [1, 8]
    for chosen in ([], [12], [-1], [3, 3]):
        with pytest.raises(ValueError, match=r"attention_layers is .* from 0 to n_layers - 1 = 11"):
            _config("h3-hybrid", n_layers=12, h3={"attention_layers": chosen})
    with pytest.raises(ValueError, match=r"multiple of h3\.head_dim"):
        _config(h3={"head_dim": 3})


def _config(architecture: str = "h3", **fields: Any) -> ModelConfig:
    tree: dict[str, Any] = {
        "architecture": architecture,
        "vocab_size": 7,
        "d_model": 32,
        "n_layers": 2,
        "ffn_multiple_of": 8,
    }
    return ModelConfig(**{**tree, **fields})
