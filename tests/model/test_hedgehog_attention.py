"""Hedgehog's attention against its equations, token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model.hedgehog_attention import FeatureMap, HedgehogAttention
from model.lm import LanguageModel
from model.mixer import ROWS
from model.rows import rope_tables

Build = Callable[..., LanguageModel]


def _slow(module: HedgehogAttention, x: Tensor, positions: Tensor, starts: list[int]) -> Tensor:
    """One row [T, d], one head and token at a time, in float64."""
    weights = dict(module.named_parameters())
    size, share = module.head_dim, module.heads // module.kv_heads
    frequency = 10000.0 ** -(torch.arange(0, size, 2).double() / size)

    def turned(vector: Tensor, t: int) -> Tensor:
        angle = positions[t] * frequency
        first, second = vector.chunk(2)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin])

    def features(vector: Tensor, name: str, head: int) -> Tensor:
        y = weights[f"{name}.weight"][head] @ vector + weights[f"{name}.bias"][head]
        both = torch.cat([y.exp(), (-y).exp()])
        return both / both.sum()

    qkv = (x @ weights["qkv.weight"].T).unflatten(-1, (-1, size))
    begin, rows = 0, []
    for t in range(len(x)):
        begin = t if t in starts else begin
        row = []
        for head in range(module.heads):
            key_head = head // share
            query = features(turned(qkv[t, head], t), "query_map", head)
            scores = [
                query @ features(turned(qkv[s, module.heads + key_head], s), "key_map", key_head)
                for s in range(begin, t + 1)
            ]
            values = qkv[begin : t + 1, module.heads + module.kv_heads + key_head]
            row.append(torch.stack(scores) @ values / torch.stack(scores).sum())
        rows.append(weights["out.weight"] @ torch.cat(row))
    return torch.stack(rows)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 13])
def test_values_and_gradients_are_those_of_the_equations(build: Build, length: int) -> None:
    module: Any = build(architecture="hedgehog").layers[0].hedgehog
    with torch.no_grad():
        for part in (module.query_map, module.key_map):
            part.weight.add_(0.5 * torch.randn_like(part.weight))
            part.bias.normal_()
    x, start = 3 * torch.randn(1, length, 32), length // 2
    starts = torch.zeros(1, length, dtype=torch.bool)
    starts[0, start] = True
    positions = torch.cat([torch.arange(start), torch.arange(length - start)])
    cos, sin = rope_tables(positions[None], 8, 10000.0)
    measured = module(x, ROWS._replace(cos=cos, sin=sin, starts=starts))[0]
    weigh = torch.randn_like(measured)
    gradients = torch.autograd.grad((measured * weigh).sum(), list(module.parameters()))
    slow = module.double()
    expected = _slow(slow, x[0].double(), positions.double(), [start])
    torch.testing.assert_close(measured.double(), expected, rtol=1e-4, atol=1e-5)
    slow_gradients = torch.autograd.grad((expected * weigh).sum(), list(slow.parameters()))
    for (name, _), ours, theirs in zip(module.named_parameters(), gradients, slow_gradients, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-4, msg=name)


@torch.no_grad()
def test_maps_start_as_the_identity(build: Build) -> None:
    module: FeatureMap = build(architecture="hedgehog").layers[0].hedgehog.key_map
    x = torch.randn(2, 3, 2, 8)
    torch.testing.assert_close(module(x), torch.cat([x, -x], dim=-1).softmax(-1))
