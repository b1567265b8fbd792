"""The chunked SSD against a float64 loop."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.errors import ModelError
from model.ssd import ssd, ssd_reference
from tests.model.ops import assert_matches, chunks_and_lengths, normal, random_starts, relative_errors


def _inputs(batch: int, length: int, heads: int, groups: int, initial: bool, seed: int) -> list[Tensor]:
    """x, dt, a, b, c and perhaps a state, in float64; steps and rates as at Mamba-2's initialisation."""
    generator = torch.Generator().manual_seed(seed)
    channels, size = 3, 5
    dt = torch.exp(-7 + 5 * torch.rand(batch, length, heads, generator=generator, dtype=torch.float64))
    a = -16 * torch.rand(heads, generator=generator, dtype=torch.float64)
    x = normal(generator, batch, length, heads, channels)
    b, c = (normal(generator, batch, length, groups, size) for _ in range(2))
    state = normal(generator, batch, heads, channels, size)
    return [x, dt, a, b, c, *([state] if initial else [])]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=chunks_and_lengths(),
    batch=st.integers(1, 2),
    grouping=st.sampled_from([(1, 1), (2, 1), (2, 2), (6, 3)]),
    resets=st.booleans(),
    initial=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_ssd_and_gradients_equal_the_float64_loop(
    sizes: tuple[int, int], batch: int, grouping: tuple[int, int], resets: bool, initial: bool, seed: int
) -> None:
    chunk, length = sizes
    leaves = _inputs(batch, length, *grouping, initial, seed)
    starts = random_starts(torch.Generator().manual_seed(seed), batch, length) if resets else None

    def run(*t: Tensor) -> Sequence[Tensor]:
        return ssd(*t[:5], starts, t[5] if initial else None, chunk)

    def reference(*t: Tensor) -> Sequence[Tensor]:
        return ssd_reference(*t[:5], starts, t[5] if initial else None)

    assert_matches(run, reference, leaves, seed)


def test_strong_decay_neither_overflows_nor_cancels() -> None:
    x, dt, a, b, c, state = _inputs(1, 64, 2, 1, True, 1)
    dt, a = dt * 400, a * 0 - 16.0  # exp(-sum) over a chunk underflows; its inverse would be inf
    leaves = [x, dt, a, b, c, state]
    assert_matches(
        lambda *t: ssd(*t[:5], None, t[5], 32), lambda *t: ssd_reference(*t[:5], None, t[5]), leaves, 2, 1e-4
    )


def test_gradcheck() -> None:
    leaves = [t.requires_grad_() for t in _inputs(1, 5, 2, 1, True, 3)]
    starts = torch.tensor([[False, False, True, False, False]])
    assert torch.autograd.gradcheck(lambda *t: ssd(*t[:5], starts, t[5], 2), leaves)


@pytest.mark.parametrize("position", [1, 3, 4, 7, 9])
def test_documents_are_bit_identical_whatever_came_before(position: int) -> None:
    x, dt, a, b, c, state = (t.float() for t in _inputs(2, 11, 4, 2, True, 7))
    starts = torch.zeros(2, 11, dtype=torch.bool)
    starts[:, position] = True
    before, final = ssd(x, dt, a, b, c, starts, state, 4)
    for t in (x, dt, b, c):
        t[:, :position] *= 1.7
    after, final_after = ssd(x, dt, a, b, c, starts, state + 1, 4)
    assert torch.equal(before[:, position:], after[:, position:])
    assert torch.equal(final, final_after)
    assert not torch.equal(before[:, :position], after[:, :position])


def test_parts_and_single_tokens_equal_the_whole() -> None:
    x, dt, a, b, c, state = _inputs(2, 23, 4, 2, True, 9)
    starts = random_starts(torch.Generator().manual_seed(4), 2, 23)
    whole, final = ssd(x, dt, a, b, c, starts, state, 5)
    for cuts in ([0, 7, 8, 20, 23], list(range(24))):
        outputs, carried = [], state
        for begin, end in pairwise(cuts):
            part = slice(begin, end)
            y, carried = ssd(x[:, part], dt[:, part], a, b[:, part], c[:, part], starts[:, part], carried, 5)
            outputs.append(y)
        assert max(relative_errors([torch.cat(outputs, 1), carried], [whole, final])) < 1e-13


def test_autocast_and_half_precision_inputs_leave_it_float32() -> None:
    x, dt, a, b, c = (t.float() for t in _inputs(1, 9, 2, 1, False, 5))
    expected = ssd(x, dt, a, b, c, chunk=4)
    with torch.autocast("cpu", torch.bfloat16):
        measured = ssd(x, dt, a, b, c, chunk=4)
    assert all(torch.equal(m, e) for m, e in zip(measured, expected, strict=True))
    assert all(t.dtype == torch.float32 for t in ssd(x.bfloat16(), dt, a, b.bfloat16(), c.bfloat16()))


def test_groups_must_divide_heads() -> None:
    x, dt, a, b, c = _inputs(1, 4, 3, 2, False, 5)
    with pytest.raises(ModelError, match="must divide the heads"):
        ssd(x, dt, a, b, c)
