"""One product for all branches: its parts, its gradients, and that the model is the one with separate products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from model.generate import generate
from model.lm import LanguageModel
from model.packed import packed_linear
from tests.model.ops import normal, relative_errors, values_and_gradients

Build = Callable[..., LanguageModel]

VARIANTS: dict[str, dict[str, Any]] = {
    "pha": {},
    "without-attention": {"branches": ["gss", "ffn"]},
    "ssd": {"gss": {"kind": "ssd"}},  # the SSD's map is not taken in: it belongs to more than its input
    "window": {"attention": {"window": 5}},
    "token-gate": {"mixing": "token_gate"},
}

MAPS = {"gss": "gss.in_proj", "attention": "attention.qkv", "ffn_aux": "ffn_aux.gate_up"}


@given(
    st.sampled_from([(), (1,), (3, 7)]), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 2**31 - 1)
)
def test_parts_and_gradients_are_those_of_one_product_cut(rows: tuple[int, ...], sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    leaves = [normal(generator, *rows, 5), normal(generator, sum(sizes), 5)]
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        measured = values_and_gradients(lambda x, w: packed_linear(x, w, sizes), leaves, dtype, seed)
        expected = values_and_gradients(lambda x, w: F.linear(x, w).split(sizes, dim=-1), leaves, dtype, seed)
        assert max(relative_errors(measured, expected)) < tolerance


@pytest.mark.parametrize("read", [[0], [1, 2], [2, 0]])
def test_a_part_that_nobody_reads_has_no_gradient(read: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (normal(generator, *shape).requires_grad_() for shape in ((2, 4, 5), (9, 5)))

    def some(parts: tuple[Tensor, ...]) -> Tensor:
        return sum((parts[i].square().sum() for i in read), start=torch.zeros(()))

    measured = torch.autograd.grad(some(packed_linear(x, weight, [2, 3, 4])), [x, weight])
    expected = torch.autograd.grad(some(F.linear(x, weight).split([2, 3, 4], dim=-1)), [x, weight])
    assert max(relative_errors(measured, expected)) < 1e-13


@pytest.mark.parametrize("frozen", [0, 1])
def test_gradients_only_where_they_are_wanted(frozen: int) -> None:
    leaves = [torch.randn(3, 5), torch.randn(9, 5)]
    leaves[1 - frozen].requires_grad_()
    first, second = packed_linear(leaves[0], leaves[1], [4, 5])
    (first.sum() + second.sum()).backward()
    assert leaves[frozen].grad is None and leaves[1 - frozen].grad is not None


def test_autocast_reaches_it() -> None:
    x, weight = torch.randn(2, 5), torch.randn(9, 5, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = packed_linear(x, weight, [4, 5])
    assert all(part.dtype == torch.bfloat16 for part in parts)
    torch.cat(parts, dim=-1).float().sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=list(VARIANTS))
def test_a_seed_gives_the_same_model_packed_or_separate(build: Build, changes: dict[str, Any]) -> None:
    packed, separate = (build(in_projections=how, **changes) for how in ("packed", "separate"))
    weights = dict(separate.named_parameters())
    _share(packed, weights)
    tokens = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(1))
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor([5, 10, 8])).expand(2, -1)
    losses = [model(tokens, documents, labels=tokens) for model in (packed, separate)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for loss in losses:
        loss.backward()
    gradients = {name: weight.grad for name, weight in weights.items()}
    for name, parameter in packed.named_parameters():
        expected = _joined(packed, name, gradients)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert sum(p.numel() for p in packed.parameters()) == sum(p.numel() for p in separate.parameters())
    written = [generate(model.eval(), tokens[:, :9], 6, temperature=0.0) for model in (packed, separate)]
    assert written[0] == written[1]


def _joined(model: LanguageModel, name: str, tensors: dict[str, Any]) -> Tensor:
    """The tensor of the separate model's weights that belongs to a weight of the packed one."""
    if not name.endswith(".in_proj.weight") or name in tensors:
        found: Tensor = tensors[name]
        return found
    block = name.removesuffix("in_proj.weight")
    packed = model.get_submodule(block.removesuffix(".")).packed
    return torch.cat([tensors[f"{block}{MAPS[part]}.weight"] for part in packed])


@torch.no_grad()
def _share(model: LanguageModel, tensors: dict[str, Any]) -> None:
    """`build` moves gains at random, in the order of the weights: take the other's."""
    for name, parameter in model.named_parameters():
        expected = _joined(model, name, tensors)
        if parameter.ndim == 2:  # what `build` leaves alone: the seed alone must give it
            torch.testing.assert_close(parameter, expected, rtol=0, atol=0)
        parameter.copy_(expected)


def test_a_single_reader_keeps_its_own_map(build: Build) -> None:
    names = [name for name, _ in build(branches=["attention"]).named_parameters()]
    assert "blocks.0.attention.qkv.weight" in names and "blocks.0.in_proj.weight" not in names
