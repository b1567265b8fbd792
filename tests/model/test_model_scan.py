"""The chunked scan against a float64 loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.scan import diagonal_scan, diagonal_scan_reference


def _inputs(batch: int, length: int, size: int, resets: bool, initial: bool, seed: int) -> list[Tensor]:
    """Decays (near 1, or 0 at resets), inputs, upstream gradient and initial state, in float64."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(batch, length, size, generator=generator, dtype=torch.float64) ** 0.2
    if resets:
        a = a * (torch.rand(batch, length, 1, generator=generator) > 0.3)
    x, grad = (torch.randn(batch, length, size, generator=generator, dtype=torch.float64) for _ in range(2))
    start = torch.randn(batch, size, generator=generator, dtype=torch.float64)
    return [a, x, grad, *([start] if initial else [])]


def _lengths(chunk: int) -> st.SearchStrategy[int]:
    special = {1, max(1, chunk - 1), chunk, chunk + 1, 2 * chunk, 2 * chunk + 1, 3 * chunk - 1}
    return st.sampled_from(sorted(special | {2, 13, 31, 53}))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    chunk_and_length=st.integers(1, 9).flatmap(lambda chunk: st.tuples(st.just(chunk), _lengths(chunk))),
    batch=st.integers(1, 3),
    size=st.integers(1, 5),
    resets=st.booleans(),
    initial=st.booleans(),
    use_final=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_scan_and_gradients_equal_the_float64_loop(
    chunk_and_length: tuple[int, int],
    batch: int,
    size: int,
    resets: bool,
    initial: bool,
    use_final: bool,
    seed: int,
) -> None:
    chunk, length = chunk_and_length
    a, x, grad, *start = _inputs(batch, length, size, resets, initial, seed)

    def run(scan_dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(scan_dtype).requires_grad_() for t in (a, x, *start)]
        given_state = leaves[2] if initial else None
        if scan_dtype == torch.float64:
            states, final = diagonal_scan_reference(leaves[0], leaves[1], given_state)
        else:
            states, final = diagonal_scan(leaves[0], leaves[1], given_state, chunk)
        loss = (states * grad.to(scan_dtype)).sum() + (3 * final.square().sum() if use_final else 0)
        return [states.detach(), final.detach(), *torch.autograd.grad(loss, leaves)]

    for measured, expected in zip(run(torch.float32), run(torch.float64), strict=True):
        assert measured.dtype == torch.float32
        torch.testing.assert_close(measured.double(), expected, rtol=2e-5, atol=2e-5 * (1 + expected.abs().max()))


@pytest.mark.parametrize("length", [1, 3, 4, 8, 11])
def test_gradcheck(length: int) -> None:
    a, x, _, start = _inputs(2, length, 2, True, True, 3)
    leaves = [t.requires_grad_() for t in (a, x, start)]
    assert torch.autograd.gradcheck(lambda a, x, s: diagonal_scan(a, x, s, 4), leaves)


def test_float64_chunks_agree_to_rounding() -> None:
    a, x, _, start = _inputs(2, 37, 3, True, True, 5)
    expected, _ = diagonal_scan_reference(a, x, start)
    for chunk in (1, 5, 36, 37, 38):
        torch.testing.assert_close(diagonal_scan(a, x, start, chunk)[0], expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("position", [0, 3, 4, 7, 9])
def test_a_reset_is_exact(position: int) -> None:
    a, x, _, start = (t.float() for t in _inputs(2, 11, 3, False, True, 7))
    a[:, position] = 0
    before, _ = diagonal_scan(a, x, start, 4)
    x[:, :position] += 5
    after, _ = diagonal_scan(a, x, start + 1, 4)
    assert torch.equal(before[:, position:], after[:, position:])
    if position:
        assert not torch.equal(before[:, :position], after[:, :position])


def test_views_and_half_precision_inputs() -> None:
    packed = torch.rand(2, 9, 8).to(torch.bfloat16)
    a, x = packed.chunk(2, dim=-1)
    states, final = diagonal_scan(a, x, None, 4)
    expected, _ = diagonal_scan_reference(a.double(), x.double())
    assert states.dtype == final.dtype == torch.float32
    torch.testing.assert_close(states.double(), expected, rtol=1e-5, atol=1e-5)
