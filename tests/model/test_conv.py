"""The shifted multiply-adds against a loop over tokens, and against torch's convolution."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from model.conv import causal_conv, causal_conv_reference
from model.errors import ModelError
from tests.model.ops import assert_matches, normal, random_starts, relative_errors


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    width=st.integers(1, 5),
    length=st.sampled_from([1, 2, 3, 4, 5, 13]),
    bias=st.booleans(),
    resets=st.booleans(),
    state=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_values_and_gradients_equal_the_float64_loop(
    width: int, length: int, bias: bool, resets: bool, state: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    leaves = [normal(generator, 2, length, 3), normal(generator, 3, width), normal(generator, 3)]
    leaves.append(normal(generator, 2, width - 1, 3))
    starts = random_starts(generator, 2, length) if resets else None

    def arguments(x: Tensor, weight: Tensor, b: Tensor, s: Tensor) -> tuple[Tensor | None, ...]:
        return x, weight, b if bias else None, starts, s if state else None

    def run(*t: Tensor) -> Sequence[Tensor]:
        return causal_conv(*arguments(*t))  # type: ignore[arg-type]

    def reference(*t: Tensor) -> Sequence[Tensor]:
        return causal_conv_reference(*arguments(*t))  # type: ignore[arg-type]

    assert_matches(run, reference, leaves, seed)


def test_it_is_a_depthwise_convolution() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = normal(generator, 2, 9, 3), normal(generator, 3, 4), normal(generator, 3)
    expected = F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), weight.unsqueeze(1), bias, groups=3).transpose(1, 2)
    torch.testing.assert_close(causal_conv(x, weight, bias)[0], expected)


@pytest.mark.parametrize("position", range(9))
def test_documents_are_bit_identical_whatever_came_before(position: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight, state = (normal(generator, *s).float() for s in ((2, 9, 3), (3, 4), (2, 3, 3)))
    starts = torch.zeros(2, 9, dtype=torch.bool)
    starts[:, position] = True
    before, kept = causal_conv(x, weight, None, starts, state)
    x[:, :position] += 3
    after, kept_after = causal_conv(x, weight, None, starts, state + 1)
    assert torch.equal(before[:, position:], after[:, position:])
    assert torch.equal(kept, kept_after)


def test_parts_and_single_tokens_equal_the_whole() -> None:
    generator = torch.Generator().manual_seed(2)
    x, weight, state = normal(generator, 2, 11, 3), normal(generator, 3, 4), normal(generator, 2, 3, 3)
    starts = random_starts(generator, 2, 11)
    whole, final = causal_conv(x, weight, None, starts, state)
    for cuts in ([0, 2, 3, 9, 11], list(range(12))):
        outputs, carried = [], state
        for begin, end in pairwise(cuts):
            y, carried = causal_conv(x[:, begin:end], weight, None, starts[:, begin:end], carried)
            outputs.append(y)
        assert max(relative_errors([torch.cat(outputs, 1), carried], [whole, final])) < 1e-14


def test_a_state_of_another_filter_is_refused() -> None:
    with pytest.raises(ModelError, match="holds 2 inputs"):
        causal_conv(torch.zeros(1, 3, 2), torch.zeros(2, 4), state=torch.zeros(1, 2, 2))
