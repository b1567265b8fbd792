"""The shift SSM against a loop that shifts the state."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.errors import ModelError
from model.lti import fft_convolve
from model.shift import shift_ssm, shift_ssm_reference
from tests.model.ops import assert_matches, chunks_and_lengths, normal, random_starts, relative_errors


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=chunks_and_lengths(),
    taps=st.integers(1, 7),
    skip=st.booleans(),
    causal_bits=st.booleans(),
    resets=st.booleans(),
    state=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_values_and_gradients_equal_the_float64_loop(
    sizes: tuple[int, int], taps: int, skip: bool, causal_bits: bool, resets: bool, state: bool, seed: int
) -> None:
    chunk, length = sizes
    generator = torch.Generator().manual_seed(seed)
    leaves = [normal(generator, *s) for s in ((2, length, 3), (3, taps), (3,), (2, taps - 1, 3))]
    starts = random_starts(generator, 2, length) if resets else None

    def run(*t: Tensor) -> Sequence[Tensor]:
        return shift_ssm(t[0], t[1], t[2] if skip else None, starts, t[3] if state else None, chunk, causal_bits)

    def reference(*t: Tensor) -> Sequence[Tensor]:
        return shift_ssm_reference(t[0], t[1], t[2] if skip else None, starts, t[3] if state else None)

    assert_matches(run, reference, leaves, seed)


@pytest.mark.parametrize("length", [1, 5, 63, 64, 65, 131])
def test_it_is_a_convolution(length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = normal(generator, 2, length, 3), normal(generator, 3, 64)
    torch.testing.assert_close(shift_ssm(x, weight)[0], fft_convolve(x, weight))


def test_products_let_a_later_token_change_no_bit() -> None:
    generator = torch.Generator().manual_seed(4)
    x, weight = normal(generator, 2, 23, 3).float(), normal(generator, 3, 5).float()
    before, _ = shift_ssm(x, weight, chunk=8, causal_bits=True)
    for position in range(23):
        changed = x.clone()
        changed[:, position] += 3
        after, _ = shift_ssm(changed, weight, chunk=8, causal_bits=True)
        assert torch.equal(before[:, :position], after[:, :position])


@pytest.mark.parametrize("position", range(11))
def test_documents_are_bit_identical_whatever_came_before(position: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight, state = (normal(generator, *s).float() for s in ((2, 11, 3), (3, 5), (2, 4, 3)))
    starts = torch.zeros(2, 11, dtype=torch.bool)
    starts[:, position] = True
    before, kept = shift_ssm(x, weight, None, starts, state, 4)
    x[:, :position] += 3
    after, kept_after = shift_ssm(x, weight, None, starts, state + 1, 4)
    assert torch.equal(before[:, position:], after[:, position:])
    assert torch.equal(kept, kept_after)


def test_parts_and_single_tokens_equal_the_whole() -> None:
    generator = torch.Generator().manual_seed(2)
    x, weight, state = normal(generator, 2, 23, 3), normal(generator, 3, 6), normal(generator, 2, 5, 3)
    starts = random_starts(generator, 2, 23, 0.1)
    whole, final = shift_ssm(x, weight, None, starts, state, 5)
    for cuts in ([0, 2, 3, 9, 23], list(range(24))):
        outputs, carried = [], state
        for begin, end in pairwise(cuts):
            y, carried = shift_ssm(x[:, begin:end], weight, None, starts[:, begin:end], carried, 5)
            outputs.append(y)
        assert max(relative_errors([torch.cat(outputs, 1), carried], [whole, final])) < 1e-13


def test_autocast_leaves_it_float32() -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = normal(generator, 2, 9, 3).float(), normal(generator, 3, 4).float()
    expected, _ = shift_ssm(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        measured, _ = shift_ssm(x, weight)
    assert torch.equal(measured, expected)


def test_bad_arguments_are_refused() -> None:
    x, weight = torch.zeros(1, 3, 2), torch.zeros(2, 4)
    with pytest.raises(ModelError, match="holds 2 inputs"):
        shift_ssm(x, weight, state=torch.zeros(1, 2, 2))
    with pytest.raises(ModelError, match="at least 1"):
        shift_ssm(x, weight, chunk=0)
