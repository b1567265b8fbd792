"""Chunked linear attention against a float64 loop."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.errors import ModelError
from model.linear_attention import linear_attention, linear_attention_reference
from tests.model.ops import assert_matches, chunks_and_lengths, normal, random_starts, relative_errors


def _inputs(batch: int, length: int, heads: int, kv_heads: int, initial: bool, seed: int) -> list[Tensor]:
    """Features of queries and keys, values, and perhaps S and z, in float64."""
    generator = torch.Generator().manual_seed(seed)
    phi_q = normal(generator, batch, length, heads, 4).exp()
    phi_k = normal(generator, batch, length, kv_heads, 4).exp()
    v, state = normal(generator, batch, length, kv_heads, 3), normal(generator, batch, kv_heads, 4, 3)
    z = normal(generator, batch, kv_heads, 4).exp()
    return [phi_q, phi_k, v, *([state, z] if initial else [])]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=chunks_and_lengths(),
    batch=st.integers(1, 2),
    grouping=st.sampled_from([(1, 1), (2, 1), (2, 2), (6, 3)]),
    resets=st.booleans(),
    initial=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_values_and_gradients_equal_the_float64_loop(
    sizes: tuple[int, int], batch: int, grouping: tuple[int, int], resets: bool, initial: bool, seed: int
) -> None:
    chunk, length = sizes
    leaves = _inputs(batch, length, *grouping, initial, seed)
    starts = random_starts(torch.Generator().manual_seed(seed), batch, length) if resets else None

    def run(*t: Tensor) -> Sequence[Tensor]:
        y, (state, z) = linear_attention(t[0], t[1], t[2], starts, (t[3], t[4]) if initial else None, chunk)
        return y, state, z

    def reference(*t: Tensor) -> Sequence[Tensor]:
        y, (state, z) = linear_attention_reference(t[0], t[1], t[2], starts, (t[3], t[4]) if initial else None)
        return y, state, z

    assert_matches(run, reference, leaves, seed)


@pytest.mark.parametrize("position", [1, 3, 4, 7, 9])
def test_documents_are_bit_identical_whatever_came_before(position: int) -> None:
    phi_q, phi_k, v, state, z = (t.float() for t in _inputs(2, 11, 4, 2, True, 7))
    starts = torch.zeros(2, 11, dtype=torch.bool)
    starts[:, position] = True
    before, final = linear_attention(phi_q, phi_k, v, starts, (state, z), 4)
    for t in (phi_q, phi_k, v):
        t[:, :position] *= 1.7
    after, final_after = linear_attention(phi_q, phi_k, v, starts, (state + 1, z + 1), 4)
    assert torch.equal(before[:, position:], after[:, position:])
    assert torch.equal(final[0], final_after[0])
    assert torch.equal(final[1], final_after[1])
    assert not torch.equal(before[:, :position], after[:, :position])


def test_parts_and_single_tokens_equal_the_whole() -> None:
    phi_q, phi_k, v, *state = _inputs(2, 23, 4, 2, True, 9)
    starts = random_starts(torch.Generator().manual_seed(4), 2, 23)
    whole, final = linear_attention(phi_q, phi_k, v, starts, (state[0], state[1]), 5)
    for cuts in ([0, 7, 8, 20, 23], list(range(24))):
        outputs, carried = [], (state[0], state[1])
        for begin, end in pairwise(cuts):
            part = slice(begin, end)
            y, carried = linear_attention(phi_q[:, part], phi_k[:, part], v[:, part], starts[:, part], carried, 5)
            outputs.append(y)
        assert max(relative_errors([torch.cat(outputs, 1), *carried], [whole, *final])) < 1e-13


def test_tokens_without_any_match_give_zero() -> None:
    zeros = torch.zeros(1, 5, 2, 3, requires_grad=True)
    y, _ = linear_attention(zeros, zeros, torch.ones(1, 5, 2, 3), None, None, 2)
    assert torch.equal(y, torch.zeros_like(y))
    (gradient,) = torch.autograd.grad(y.sum(), zeros)
    assert gradient.isfinite().all()


def test_autocast_leaves_it_float32() -> None:
    inputs = [t.float() for t in _inputs(1, 9, 2, 1, False, 5)]
    expected, _ = linear_attention(*inputs, chunk=4)
    with torch.autocast("cpu", torch.bfloat16):
        measured, _ = linear_attention(*inputs, chunk=4)
    assert torch.equal(measured, expected)


def test_key_heads_must_divide_query_heads() -> None:
    phi_q, phi_k, v = _inputs(1, 4, 3, 2, False, 5)
    with pytest.raises(ModelError, match="must divide them"):
        linear_attention(phi_q, phi_k, v)
