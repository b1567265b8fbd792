"""The chunked kernels, as the SSD of Mamba-2 and as linear attention, against their definitions in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.kernels.dispatch import installed
from model.linear_attention import linear_attention, linear_attention_reference
from model.ssd import ssd, ssd_reference
from tests.model.kernels.proof import DTYPES, SEEDS, errors, fresh
from tests.model.kernels.proof import TOLERANCE as ALLOWED
from tests.model.ops import normal, random_starts

if not installed():
    pytest.skip("triton is not installed here: it has no wheel for this system", allow_module_level=True)

from model.kernels.chunked import CHUNK

LENGTHS = st.sampled_from([2, 13, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])


@fresh
@given(
    st.integers(1, 2),
    LENGTHS,
    st.sampled_from([(1, 1), (4, 1), (4, 2), (3, 3)]),
    st.sampled_from([(3, 5), (16, 16), (24, 70)]),
    st.booleans(),
    st.booleans(),
    DTYPES,
    SEEDS,
)
def test_ssd(batch, length, heads, sizes, documents, from_state, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    (count, groups), (channels, state) = heads, sizes
    starts = random_starts(generator, batch, length) if documents else None
    leaves = [
        normal(generator, batch, length, count, channels),
        0.1 + torch.rand(batch, length, count, generator=generator, dtype=torch.float64),
        -torch.rand(count, generator=generator, dtype=torch.float64) - 0.01,
        normal(generator, batch, length, groups, state),
        normal(generator, batch, length, groups, state),
    ] + ([normal(generator, batch, count, channels, state)] if from_state else [])

    def run(operation):
        return lambda x, dt, a, b, c, initial=None: operation(x, dt, a, b, c, starts, initial)

    found = errors(run(ssd), run(ssd_reference), leaves, dtype, seed)
    assert max(found) < ALLOWED[dtype], found


@fresh
@given(
    st.integers(1, 2),
    LENGTHS,
    st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    st.sampled_from([(6, 4), (32, 16), (70, 33)]),
    st.booleans(),
    st.booleans(),
    DTYPES,
    SEEDS,
)
def test_linear_attention(batch, length, heads, sizes, documents, from_state, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    (count, kv), (features, channels) = heads, sizes
    starts = random_starts(generator, batch, length) if documents else None
    leaves = [
        normal(generator, batch, length, count, features).abs(),
        normal(generator, batch, length, kv, features).abs(),
        normal(generator, batch, length, kv, channels),
    ]
    if from_state:
        leaves += [normal(generator, batch, kv, features, channels), normal(generator, batch, kv, features).abs()]

    def run(operation):
        def flat(q, k, v, *state):
            y, (total, normaliser) = operation(q, k, v, starts, state or None)
            return [y, total, normaliser]

        return flat

    found = errors(run(linear_attention), run(linear_attention_reference), leaves, dtype, seed)
    assert max(found) < ALLOWED[dtype], found


def test_a_document_knows_nothing_of_the_one_before():
    generator = torch.Generator().manual_seed(1)
    x, dt = torch.randn(1, 150, 2, 16, generator=generator), torch.rand(1, 150, 2, generator=generator)
    b, c = (torch.randn(1, 150, 1, 16, generator=generator) for _ in range(2))
    a, starts = -torch.ones(2), torch.zeros(1, 150, dtype=torch.bool)
    starts[0, [0, 70]] = True
    y, _ = ssd(x, dt, a, b, c, starts)
    x[0, :70], dt[0, :70] = 3 * x[0, :70], dt[0, :70] / 2
    other, _ = ssd(x, dt, a, b, c, starts)
    assert torch.equal(y[:, 70:], other[:, 70:]) and not torch.equal(y[:, :70], other[:, :70])
