"""What the tests of the sequence operations share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor


def lengths(chunk: int) -> st.SearchStrategy[int]:
    """Lengths around multiples of a chunk, and primes."""
    special = {1, max(1, chunk - 1), chunk, chunk + 1, 2 * chunk, 2 * chunk + 1, 3 * chunk - 1}
    return st.sampled_from(sorted(special | {2, 13, 31}))


def chunks_and_lengths(largest: int = 9) -> st.SearchStrategy[tuple[int, int]]:
    """A chunk size and a length that suits it."""
    return st.integers(1, largest).flatmap(lambda chunk: st.tuples(st.just(chunk), lengths(chunk)))


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def random_starts(generator: torch.Generator, batch: int, length: int, share: float = 0.2) -> Tensor:
    """Document starts at random, also at first tokens."""
    return torch.rand(batch, length, generator=generator) < share


def values_and_gradients(
    run: Callable[..., Sequence[Tensor]],
    leaves: Sequence[Tensor],
    dtype: torch.dtype,
    seed: int,
    rounded: torch.dtype | None = None,
) -> list[Tensor]:
    """Outputs of run(*leaves) with leaves of `dtype`, and the gradients of a random projection of the outputs.

    The projection's numbers are those of `rounded`, by default of `dtype`.
    """
    inputs = [(t.to(dtype.to_complex()) if t.is_complex() else t.to(dtype)).requires_grad_() for t in leaves]
    outputs = run(*inputs)
    generator = torch.Generator().manual_seed(seed)
    loss = torch.zeros((), dtype=dtype)
    for output in outputs:
        real = torch.view_as_real(output) if output.is_complex() else output
        loss = loss + (real * normal(generator, *real.shape).to(rounded or dtype).to(dtype)).sum()
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    kept = [torch.zeros_like(i) if g is None else g for g, i in zip(gradients, inputs, strict=True)]
    return [*(o.detach() for o in outputs), *kept]


def relative_errors(measured: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Largest difference over largest value (at least 1), for each tensor."""
    return [
        ((m - e).abs().max() / e.abs().max().clamp(min=1)).item() if e.numel() else 0.0
        for m, e in zip(measured, expected, strict=True)
    ]


def assert_matches(
    run: Callable[..., Sequence[Tensor]],
    reference: Callable[..., Sequence[Tensor]],
    leaves: Sequence[Tensor],
    seed: int,
    tolerance: float = 2e-5,
) -> None:
    """float32 values and gradients of `run` are those of `reference` in float64, and stay float32."""
    measured = values_and_gradients(run, leaves, torch.float32, seed)
    expected = values_and_gradients(reference, leaves, torch.float64, seed)
    assert all(m.dtype in (torch.float32, torch.complex64) for m in measured)
    errors = relative_errors(measured, expected)
    assert max(errors) < tolerance, errors
