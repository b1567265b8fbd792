"""Selection, and gathered attention against the dense one in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.errors import ModelError
from model.selective import budget_loss, gumbel_noise, select, selected_attention, selected_attention_reference
from tests.model.ops import assert_matches, chunks_and_lengths, normal, random_starts


def _inputs(length: int, past: int, kv_heads: int, seed: int) -> list[Tensor]:
    """q, k, v and the past's k, v, in float64."""
    generator = torch.Generator().manual_seed(seed)
    kv = [(2, rows, kv_heads, channels) for rows in (length, past) for channels in (8, 6)]
    shapes = [(2, length, 4, 8), *kv]
    return [normal(generator, *shape) for shape in shapes]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=chunks_and_lengths(),
    window=st.sampled_from([1, 2, 5, 40]),
    past=st.sampled_from([0, 1, 6]),
    kv_heads=st.sampled_from([1, 2, 4]),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    resets=st.sampled_from(["none", "row", "past"]),
    seed=st.integers(0, 10**6),
)
def test_values_and_gradients_equal_dense_float64_attention(
    sizes: tuple[int, int], window: int, past: int, kv_heads: int, share: float, resets: str, seed: int
) -> None:
    tile, length = sizes
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, length, generator=generator) < share
    starts = None if resets == "none" else random_starts(generator, 2, length + (past if resets == "past" else 0))

    def run(*t: Tensor) -> Sequence[Tensor]:
        return [selected_attention(t[0], t[1], t[2], mask, window, starts, (t[3], t[4]), tile=tile)]

    def reference(*t: Tensor) -> Sequence[Tensor]:
        return [selected_attention_reference(t[0], t[1], t[2], mask, window, starts, (t[3], t[4]))]

    assert_matches(run, reference, _inputs(length, past, kv_heads, seed), seed)


def test_tokens_that_are_not_selected_get_exactly_zero_and_cost_nothing() -> None:
    q, k, v, *_ = (t.float() for t in _inputs(12, 0, 2, 1))
    mask = torch.zeros(2, 12, dtype=torch.bool)
    q.requires_grad_()
    nothing = selected_attention(q, k, v, mask, 4)
    assert torch.equal(nothing, torch.zeros(2, 12, 4, 6))
    (gradient,) = torch.autograd.grad(nothing.sum(), q)
    assert torch.equal(gradient, torch.zeros_like(q))
    mask[0, 5] = True
    output = selected_attention(q, k, v, mask, 4, tile=4)
    assert torch.equal(output != 0, mask[..., None, None].expand_as(output))


def test_no_score_matrix_exceeds_a_tile_and_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    dense = torch.nn.functional.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, *args: Tensor, **kwargs: Tensor) -> Tensor:
        sizes.append((q.shape[2], k.shape[2]))
        return dense(q, k, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("model.selective.F.scaled_dot_product_attention", spy)
    q, k, v, *_ = _inputs(64, 0, 2, 2)
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[:, [3, 4, 20, 60]] = True
    mask[1, 21] = True
    selected_attention(q, k, v, mask, 8, tile=16)
    assert sizes == [(8, 16), (8, 23), (8, 23)]


@pytest.mark.parametrize("position", [1, 3, 4, 7, 9])
def test_documents_are_bit_identical_whatever_came_before(position: int) -> None:
    q, k, v, *past = (t.float() for t in _inputs(11, 3, 2, 3))
    mask = torch.rand(2, 11, generator=torch.Generator().manual_seed(0)) < 0.7
    starts = torch.zeros(2, 11, dtype=torch.bool)
    starts[:, position] = True
    before = selected_attention(q, k, v, mask, 6, starts, (past[0], past[1]), tile=4)
    for t in (q, k, v):
        t[:, :position] *= 3
    after = selected_attention(q, k, v, mask, 6, starts, (past[0] + 1, past[1] + 1), tile=4)
    assert torch.equal(before[:, position:], after[:, position:])


def test_a_choice_in_one_document_leaves_the_rounding_of_the_next() -> None:
    generator = torch.Generator().manual_seed(6)
    for _ in range(20):
        q, k, v = (normal(generator, 2, 90, heads, 32).float() for heads in (4, 2, 2))
        starts, mask = torch.zeros(2, 90, dtype=torch.bool), torch.rand(2, 90, generator=generator) < 0.3
        starts[:, 41] = True
        before = selected_attention(q, k, v, mask, 30, starts, tile=64)
        mask[:, :41] = torch.rand(2, 41, generator=generator) < 0.6
        after = selected_attention(q, k, v, mask, 30, starts, tile=64)
        assert torch.equal(before[:, 41:], after[:, 41:])


def test_parts_and_single_tokens_equal_the_whole() -> None:
    q, k, v, *_ = _inputs(23, 0, 2, 4)
    generator = torch.Generator().manual_seed(1)
    mask, starts = torch.rand(2, 23, generator=generator) < 0.5, random_starts(generator, 2, 23, 0.1)
    whole = selected_attention(q, k, v, mask, 6, starts, tile=5)
    for size in (1, 4):
        parts = []
        for begin in range(0, 23, size):
            part, low = slice(begin, begin + size), max(0, begin - 5)
            parts.append(
                selected_attention(
                    q[:, part],
                    k[:, part],
                    v[:, part],
                    mask[:, part],
                    6,
                    starts[:, low : begin + size],
                    (k[:, low:begin], v[:, low:begin]),
                )
            )
        torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_half_precision_gradients_under_autocast() -> None:
    leaves = [t.bfloat16().requires_grad_() for t in _inputs(12, 0, 2, 7)[:3]]
    mask = torch.rand(2, 12, generator=torch.Generator().manual_seed(2)) < 0.5
    with torch.autocast("cpu", torch.bfloat16):
        output = selected_attention(leaves[0], leaves[1], leaves[2], mask, 5, tile=4)
    gradients = torch.autograd.grad(output.float().square().sum(), leaves)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    dense = selected_attention_reference(wide[0], wide[1], wide[2], mask, 5)
    expected = torch.autograd.grad(dense.square().sum(), wide)
    assert output.dtype == torch.bfloat16
    for measured, exact in zip((output, *gradients), (dense, *expected), strict=True):
        torch.testing.assert_close(measured.double(), exact, rtol=0.05, atol=0.05)


def test_selection_is_hard_forward_and_soft_backward() -> None:
    logits = torch.tensor([[[0.0, 1.0], [2.0, 0.5], [1.0, 1.0]]], requires_grad=True)
    chosen = select(logits, tau=0.5)
    assert chosen.mask.tolist() == [[True, False, False]]
    assert chosen.weight.tolist() == [[1.0, 0.0, 0.0]]
    torch.testing.assert_close(chosen.alpha, logits.softmax(-1)[..., 1])
    (measured,) = torch.autograd.grad(chosen.weight.sum(), logits)
    (expected,) = torch.autograd.grad((logits / 0.5).softmax(-1)[..., 1].sum(), logits)
    torch.testing.assert_close(measured, expected)


def test_noise_selects_with_the_softmax_probability() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.tensor([0.0, 1.0]).expand(1, 20000, 2)
    noise = gumbel_noise(logits.shape, logits.device, generator)
    chosen = select(logits, tau=0.3, noise=noise)
    assert abs(chosen.mask.float().mean() - torch.sigmoid(torch.tensor(1.0))) < 0.01
    torch.testing.assert_close(chosen.alpha, torch.sigmoid(torch.ones(1, 20000)))


def test_budget_loss_pulls_the_share_to_the_budget() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.zeros(2, 500, 2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(100):
        noise = gumbel_noise(logits.shape, logits.device, generator)
        loss = budget_loss(select(logits, 1.0, noise).weight, 0.15)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 2e-3
    assert budget_loss(torch.full((2, 4), 0.5), 0.25) == 0.0625


def test_bad_arguments_are_refused() -> None:
    q, k, v, *_ = _inputs(3, 0, 3, 5)
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ModelError, match="must divide"):
        selected_attention(q, k, v, mask, 2)
    with pytest.raises(ModelError, match="window is 0"):
        selected_attention(q, k[:, :, :1], v[:, :, :1], mask, 0)
    with pytest.raises(ModelError, match="tile is 0"):
        selected_attention(q, k[:, :, :1], v[:, :, :1], mask, 2, tile=0)
    with pytest.raises(ModelError, match="tau is 0"):
        select(torch.zeros(1, 1, 2), 0.0)
