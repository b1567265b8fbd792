"""Operations whose backward pass is written out equal their definitions, which autograd differentiates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.ffn import swiglu, swiglu_reference
from model.gated_scan import gated_scan, gated_scan_reference
from model.norm import rms_norm, rms_norm_reference
from tests.model.ops import normal, random_starts, relative_errors, values_and_gradients

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 3e-2}

Operation = Callable[..., Sequence[Tensor]]


def compare(operation: Operation, definition: Operation, leaves: Sequence[Tensor], dtype: torch.dtype) -> None:
    rounded = [leaf.to(dtype) for leaf in leaves]
    measured = values_and_gradients(operation, rounded, dtype, 3)
    expected = values_and_gradients(definition, [leaf.double() for leaf in rounded], torch.float64, 3, dtype)
    assert max(relative_errors(measured, expected)) < TOLERANCE[dtype]
    assert all(m.dtype == dtype for m in measured[-len(leaves) :])


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(
    shape=st.sampled_from([(1, 1, 1), (2, 7, 3), (3, 40, 5)]),
    flags=st.tuples(*[st.booleans()] * 5),
    chunk=st.sampled_from([1, 8, 32]),
    seed=st.integers(0, 2**31),
)
def test_gated_scan(dtype, shape, flags, chunk, seed):
    (batch, length, size), (rated, documents, from_state, signed, scaled) = shape, flags
    generator = torch.Generator().manual_seed(seed)
    starts = random_starts(generator, batch, length) if documents else None
    leaves = [normal(generator, batch, length, 3 * size), normal(generator, size)]
    if rated:
        leaves.append(0.5 + 0.5 * torch.rand(size, generator=generator, dtype=torch.float64))
    if from_state:
        leaves.append(normal(generator, batch, size))

    def run(operation: Operation) -> Operation:
        def call(projected: Tensor, bias: Tensor, *more: Tensor) -> Sequence[Tensor]:
            rate = more[0] if rated else None
            state = more[-1] if from_state else None
            return operation(projected, bias, rate, starts, state, signed, scaled, chunk)

        return call

    compare(run(gated_scan), run(gated_scan_reference), leaves, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(st.sampled_from([(1, 2), (3, 5, 14), (2, 3, 4, 6)]), st.integers(0, 2**31))
def test_swiglu_and_rms_norm(dtype, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    x = normal(generator, *shape)
    compare(lambda x: [swiglu(x)], lambda x: [swiglu_reference(x)], [x], dtype)
    leaves = [x, normal(generator, shape[-1])]
    compare(lambda x, g: [rms_norm(x, g, 1e-6)], lambda x, g: [rms_norm_reference(x, g, 1e-6)], leaves, dtype)


def test_only_one_of_the_scans_two_results_may_be_used():
    generator = torch.Generator().manual_seed(0)
    leaves = [normal(generator, 2, 9, 12), normal(generator, 4)]
    for index in (0, 1):
        compare(
            lambda p, b, index=index: [gated_scan(p, b)[index]],
            lambda p, b, index=index: [gated_scan_reference(p, b)[index]],
            leaves,
            torch.float64,
        )
