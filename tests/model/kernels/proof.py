"""How a kernel is held against its definition."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from model.kernels import dispatch
from tests.model.ops import values_and_gradients

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 4e-3}
"""Allowed relative error, |measured - expected| / |expected| over a whole tensor; four roundings of float16, as the
interpreter rounds (it truncates)."""

DTYPES = st.sampled_from(list(TOLERANCE))

SEEDS = st.integers(0, 2**31 - 1)

SPARE = st.sampled_from([0, 3, 16])
"""Channels that lie on both sides of what a kernel reads, as other branches' do in a packed projection."""

fresh = settings(
    derandomize=os.environ.get("PHA_FRESH") != "1",
    max_examples=int(os.environ.get("PHA_EXAMPLES", "10")),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
"""Shapes and numbers: the same in every run, or others with PHA_FRESH=1. A failure prints how to repeat it, and is not
made smaller: that is slow."""


def part(wide: Tensor, spare: int) -> Tensor:
    """What is left of [..., d + 2 spare] without the spare channels at both ends: a view."""
    return wide[..., spare : wide.shape[-1] - spare]


def relative_error(measured: Tensor, expected: Tensor) -> float:
    """|measured - expected| / |expected|; infinite where anything is not finite."""
    difference = (measured.double() - expected.double()).norm().item()
    size = expected.double().norm().item()
    if difference != difference:
        return float("inf")
    return difference / size if size > 0 else difference


def errors(
    kernel: Callable[..., Sequence[Tensor]],
    definition: Callable[..., Sequence[Tensor]],
    leaves: Sequence[Tensor],
    dtype: torch.dtype,
    seed: int,
) -> list[float]:
    """Errors of outputs and gradients of `kernel` in `dtype` against `definition` in float64 on the same numbers.

    Those behind the outputs are the same too: what is rounded there would be the larger part of a sum that cancels.
    """
    rounded = [leaf.to(dtype) for leaf in leaves]
    measured = values_and_gradients(kernel, rounded, dtype, seed)
    device = torch.device("cpu")
    dispatch.choose("reference", device)
    try:
        expected = values_and_gradients(definition, [leaf.double() for leaf in rounded], torch.float64, seed, dtype)
    finally:
        dispatch.choose("triton", device)
    return [relative_error(m, e) for m, e in zip(measured, expected, strict=True)]


def prove(
    operation: Callable[..., Sequence[Tensor]],
    leaves: Sequence[Tensor],
    dtype: torch.dtype,
    seed: int,
    kernel: Callable[..., Sequence[Tensor]] | None = None,
) -> None:
    """The kernel behind `operation` (or `kernel`) gives the operation's values and gradients."""
    found = errors(kernel or operation, operation, leaves, dtype, seed)
    assert max(found) < TOLERANCE[dtype], found
