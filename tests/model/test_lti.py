"""Diagonal state spaces: both fast forms against a complex float64 loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.lti import (
    complex_lambda,
    log_uniform_steps,
    lti,
    lti_fft,
    lti_kernel,
    lti_reference,
    s4d_lin,
    zero_order_hold,
)
from tests.model.ops import assert_matches, chunks_and_lengths, normal, random_starts, relative_errors


def _parameters(channels: int, shared: bool, generator: torch.Generator) -> list[Tensor]:
    """log rate, frequency, Delta, B, C and D near S4D-Lin, in float64."""
    size = 4
    rows = 1 if shared else channels
    lam = s4d_lin(size).to(torch.complex128)
    log_rate = (-lam.real).log() + 0.3 * normal(generator, rows, size)
    frequency = lam.imag + 0.3 * normal(generator, rows, size)
    delta = torch.ones(1, dtype=torch.float64) if shared else log_uniform_steps(channels, generator=generator).double()
    b, c = (torch.complex(normal(generator, channels, size), normal(generator, channels, size)) for _ in range(2))
    return [log_rate, frequency, delta, b, c, normal(generator, channels)]


def _system(log_rate: Tensor, frequency: Tensor, delta: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return zero_order_hold(complex_lambda(log_rate, frequency), delta, b, c)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=chunks_and_lengths(),
    batch=st.integers(1, 3),
    shared=st.booleans(),
    resets=st.booleans(),
    initial=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_chunks_and_gradients_equal_the_float64_loop(
    sizes: tuple[int, int], batch: int, shared: bool, resets: bool, initial: bool, seed: int
) -> None:
    chunk, length = sizes
    generator = torch.Generator().manual_seed(seed)
    leaves = [normal(generator, batch, length, 3), *_parameters(3, shared, generator)]
    leaves.append(torch.complex(normal(generator, batch, 3, 4), normal(generator, batch, 3, 4)))
    starts = random_starts(generator, batch, length) if resets else None

    def run(*t: Tensor) -> Sequence[Tensor]:
        return lti(t[0], *_system(*t[1:6]), t[6], starts, t[7] if initial else None, chunk)

    def reference(*t: Tensor) -> Sequence[Tensor]:
        return lti_reference(t[0], *_system(*t[1:6]), t[6], starts, t[7] if initial else None)

    assert_matches(run, reference, leaves, seed)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(length=st.sampled_from([1, 2, 13, 31, 63, 64, 65, 131]), shared=st.booleans(), seed=st.integers(0, 10**6))
def test_fft_and_gradients_equal_the_float64_loop(length: int, shared: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    leaves = [normal(generator, 2, length, 3), *_parameters(3, shared, generator)]

    def run(*t: Tensor) -> Sequence[Tensor]:
        return [lti_fft(t[0], *_system(*t[1:6]), t[6])]

    def reference(*t: Tensor) -> Sequence[Tensor]:
        return [lti_reference(t[0], *_system(*t[1:6]), t[6])[0]]

    assert_matches(run, reference, leaves, seed)


def test_the_discretisation_is_that_of_the_differential_equation() -> None:
    generator = torch.Generator().manual_seed(1)
    log_rate, frequency, delta, b, c, _ = _parameters(2, False, generator)
    u = normal(generator, 1, 6, 2)
    lam = complex_lambda(log_rate, frequency)
    a_bar = torch.exp(delta[:, None] * lam)
    b_bar = (a_bar - 1) / lam * b
    state, expected = torch.zeros_like(c), []
    for t in range(6):
        state = a_bar * state + b_bar * u[0, t, :, None]
        both = torch.cat([c * state, (c * state).conj()], dim=-1)  # the conjugate partners written out
        expected.append(both.sum(-1).real)
    measured, _ = lti(u, *zero_order_hold(lam, delta, b, c))
    torch.testing.assert_close(measured[0], torch.stack(expected), rtol=1e-10, atol=1e-10)
    single, _ = lti(u, *zero_order_hold(lam, delta, b, c, pairs=False))
    torch.testing.assert_close(2 * single, measured)


def test_small_steps_keep_their_digits() -> None:
    lam, c = s4d_lin(64).unsqueeze(0), torch.ones(1, 64, dtype=torch.complex64)
    _, weight = zero_order_hold(lam, torch.tensor([1e-5]), None, c)
    _, exact = zero_order_hold(lam.to(torch.complex128), torch.tensor([1e-5]).double(), None, c.to(torch.complex128))
    assert ((weight - exact).abs() / exact.abs()).max() < 1e-6


def test_s4d_lin_and_steps() -> None:
    lam = s4d_lin(3)
    assert torch.equal(lam.real, torch.full((3,), -0.5))
    torch.testing.assert_close(lam.imag, math.pi * torch.arange(3.0))
    steps = log_uniform_steps(2000, generator=torch.Generator().manual_seed(0))
    assert 1e-3 <= steps.min() < 1.1e-3
    assert 0.09 < steps.max() <= 0.1 + 1e-6
    assert abs(steps.log().mean() - math.log(1e-2)) < 0.1


def test_a_long_kernel_keeps_its_phase() -> None:
    generator = torch.Generator().manual_seed(2)
    lam = s4d_lin(64).unsqueeze(0)
    delta = torch.tensor([1e-3, 1e-2, 1e-1])
    c = torch.complex(torch.randn(3, 64, generator=generator), torch.randn(3, 64, generator=generator))
    measured = lti_kernel(*zero_order_hold(lam, delta, None, c), 3000)
    log_a, weight = zero_order_hold(lam.to(torch.complex128), delta.double(), None, c.to(torch.complex128))
    expected = (weight.unsqueeze(1) * torch.exp(log_a.unsqueeze(1) * torch.arange(3000).view(-1, 1))).sum(-1).real
    for m, e in zip(measured, expected, strict=True):
        assert (m - e).abs().max() / e.abs().max() < 2e-5


@pytest.mark.parametrize("position", [1, 3, 4, 7, 9])
def test_documents_are_bit_identical_whatever_came_before(position: int) -> None:
    generator = torch.Generator().manual_seed(3)
    *system, skip = _parameters(3, False, generator)
    log_a, weight = _system(*system)
    u, state = normal(generator, 2, 11, 3).float(), torch.ones(2, 3, 4, dtype=torch.complex64)
    log_a, weight, skip = log_a.to(torch.complex64), weight.to(torch.complex64), skip.float()
    starts = torch.zeros(2, 11, dtype=torch.bool)
    starts[:, position] = True
    before, final = lti(u, log_a, weight, skip, starts, state, 4)
    u[:, :position] += 3
    after, final_after = lti(u, log_a, weight, skip, starts, state + 1, 4)
    assert torch.equal(before[:, position:], after[:, position:])
    assert torch.equal(final, final_after)
    assert not torch.equal(before[:, :position], after[:, :position])


def test_parts_and_single_tokens_equal_the_whole() -> None:
    generator = torch.Generator().manual_seed(4)
    *system, skip = _parameters(3, True, generator)
    log_a, weight = _system(*system)
    u, starts = normal(generator, 2, 23, 3), random_starts(generator, 2, 23)
    whole, final = lti(u, log_a, weight, skip, starts, None, 5)
    for cuts in ([0, 7, 8, 20, 23], list(range(24))):
        outputs: list[Tensor] = []
        carried: Tensor | None = None
        for begin, end in pairwise(cuts):
            y, carried = lti(u[:, begin:end], log_a, weight, skip, starts[:, begin:end], carried, 5)
            outputs.append(y)
        assert carried is not None
        assert max(relative_errors([torch.cat(outputs, 1), carried], [whole, final])) < 1e-13


def test_autocast_leaves_it_float32() -> None:
    generator = torch.Generator().manual_seed(5)
    *system, skip = _parameters(3, False, generator)
    log_a, weight = (t.to(torch.complex64) for t in _system(*system))
    u, skip = normal(generator, 2, 9, 3).float(), skip.float()
    expected = lti(u, log_a, weight, skip, None, None, 4)[0], lti_fft(u, log_a, weight, skip)
    with torch.autocast("cpu", torch.bfloat16):
        measured = lti(u, log_a, weight, skip, None, None, 4)[0], lti_fft(u, log_a, weight, skip)
    assert all(torch.equal(m, e) for m, e in zip(measured, expected, strict=True))
    assert lti(u.bfloat16(), log_a, weight, skip)[0].dtype == torch.float32
