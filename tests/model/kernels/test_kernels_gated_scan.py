"""The gated scan against its definition in float64, in both forms, with documents and states."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.gated_scan import gated_scan
from model.kernels.dispatch import installed
from tests.model.kernels.proof import DTYPES, SEEDS, SPARE, fresh, part, prove
from tests.model.ops import normal, random_starts

if not installed():
    pytest.skip("triton is not installed here: it has no wheel for this system", allow_module_level=True)

from model.kernels import gated_scan as kernels

LENGTHS = st.sampled_from([1, 2, 13, kernels.CHUNK - 1, kernels.CHUNK, kernels.CHUNK + 1, 2 * kernels.CHUNK + 3])
CHANNELS = st.sampled_from([7, kernels.BLOCK, kernels.BLOCK + 5])


def leaves_of(generator, batch, length, channels, *, rate, state):
    """Projections, bias and, if wanted, rates and a state."""
    found = [normal(generator, batch, length, 3 * channels), 2 + normal(generator, channels)]
    found += [torch.rand(channels, generator=generator, dtype=torch.float64) * 0.5 + 0.5] if rate else []
    return found + ([normal(generator, batch, channels)] if state else [])


@fresh
@given(
    st.integers(1, 2),
    LENGTHS,
    CHANNELS,
    st.fixed_dictionaries({name: st.booleans() for name in ("rate", "state", "documents", "signed", "scaled", "walk")}),
    SPARE,
    DTYPES,
    SEEDS,
)
def test_gated_scan(batch, length, channels, chosen, spare, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    starts = random_starts(generator, batch, length) if chosen["documents"] else None
    leaves = leaves_of(generator, batch, length, channels, rate=chosen["rate"], state=chosen["state"])
    leaves[0] = normal(generator, batch, length, 3 * channels + 2 * spare)

    def arguments(projected, bias, *rest):
        rest = list(rest)
        rate = rest.pop(0) if chosen["rate"] else None
        state = rest.pop(0) if chosen["state"] else None
        return part(projected, spare), bias, rate, starts, state, chosen["signed"], chosen["scaled"]

    prove(
        lambda *given: gated_scan(*arguments(*given)),
        leaves,
        dtype,
        seed,
        kernel=lambda *given: kernels.gated_scan(*arguments(*given), walk=chosen["walk"]),
    )


@pytest.mark.parametrize("walk", [True, False])
def test_a_document_knows_nothing_of_the_one_before(walk):
    generator = torch.Generator().manual_seed(1)
    projected, bias = torch.randn(1, 150, 3 * 20, generator=generator), torch.randn(20, generator=generator)
    starts = torch.zeros(1, 150, dtype=torch.bool)
    starts[0, [0, 70]] = True
    y, _ = kernels.gated_scan(projected, bias, None, starts, walk=walk)
    projected[0, :70] += torch.randn(70, 60, generator=generator)
    other, _ = kernels.gated_scan(projected, bias, None, starts, walk=walk)
    assert torch.equal(y[:, 70:], other[:, 70:]) and not torch.equal(y[:, :70], other[:, :70])


def test_rows_that_fill_the_device_are_walked():
    assert kernels.one_pass(torch.empty(24, 1024, 3 * 1536, device="meta"))
    assert not kernels.one_pass(torch.empty(1, 65_536, 3 * 1536, device="meta"))
