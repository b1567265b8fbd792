"""The gated recurrence beside an independent one: the RG-LRU of transformers' RecurrentGemma.

RG-LRU has two gates, one of the decay, a = exp(-8 r softplus(Lambda)), and one of the input; Eq. 2 of arXiv 2606.16093
has one for both, a = g exp(-softplus(lambda)). As functions of the token they cannot be the same. They are where the
gates are constant, and the recurrence and the input scale beneath them are the same at any gates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.lm import LanguageModel
from model.scan import diagonal_scan

Build = Callable[..., LanguageModel]
WIDTH = 80


@pytest.fixture
def theirs() -> Any:
    """RG-LRU with random weights and gates that spread from closed to open."""
    pytest.importorskip("transformers")
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru

    torch.manual_seed(0)
    module = RecurrentGemmaRglru(RecurrentGemmaConfig(hidden_size=WIDTH, lru_width=WIDTH, num_attention_heads=4))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        module.recurrent_param.sub_(3)
    return module


@pytest.mark.parametrize("length", [2, 7, 8, 9, 23])
@torch.no_grad()
def test_with_constant_gates_the_whole_branch_is_theirs(build: Build, theirs: Any, length: int) -> None:
    ours: Any = build(gss={"input_scale": "rglru", "chunk": 8}, in_projections="separate").layers[0].gss
    inputs, gate, features = ours.in_proj.weight.chunk(3)
    gate.zero_()
    ours.gate_bias.normal_()
    theirs.input_gate_weight.zero_()
    theirs.recurrent_gate_weight.zero_()
    theirs.input_gate_bias.copy_(ours.gate_bias.unflatten(0, (4, -1)))
    rate = F.softplus(-ours.gate_bias) + F.softplus(ours.decay)  # -log a
    theirs.recurrent_param.copy_(torch.log(torch.expm1(rate / (8 * theirs.recurrent_gate_bias.flatten().sigmoid()))))

    x = torch.randn(2, length, 32)
    positions = torch.arange(1, length + 1).expand(2, -1)  # at 0 theirs leaves the scale out
    states = theirs(x @ inputs.T, positions)
    expected = (states * F.silu(x @ features.T)) @ ours.out_proj.weight.T
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [2, 7, 8, 9, 23])
def test_the_recurrence_is_theirs_at_any_gates_with_documents_and_states(theirs: Any, length: int) -> None:
    seen: dict[str, Tensor] = {}
    scan = theirs._rnn_scan

    def watched(**inputs: Any) -> Any:
        seen.update(inputs)
        return scan(**inputs)

    theirs._rnn_scan = watched
    theirs.recurrent_states = torch.randn(2, WIDTH)
    x = torch.randn(2, length, WIDTH, requires_grad=True)
    positions = torch.arange(3, length + 3).expand(2, -1).clone()
    positions[:, length // 2] = 0
    expected = theirs(x, positions)

    decay, driven = seen["recurrent_gate"], seen["hidden_states"]
    states, final = diagonal_scan(decay * ~seen["reset"], driven, seen["recurrent_states"], 8)
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(final, theirs.recurrent_states, rtol=1e-5, atol=1e-6)
    weigh = torch.randn_like(states)
    for ours, other in zip(
        torch.autograd.grad((states * weigh).sum(), [decay, driven], retain_graph=True),
        torch.autograd.grad((expected * weigh).sum(), [decay, driven]),
        strict=True,
    ):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)
