"""Norms, gates, rotations, the fusion epilogue and the softmax of the loss against their definitions in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.ffn import swiglu
from model.fusion import fuse
from model.loss import linear_cross_entropy, softmax_loss_
from model.norm import add_rms_norm, rms_norm
from model.rotary import qk_norm_rope
from model.rows import rope_tables
from tests.model.kernels.proof import DTYPES, SEEDS, SPARE, TOLERANCE, fresh, part, prove, relative_error
from tests.model.ops import normal

ROWS = st.sampled_from([1, 2, 3, 7, 11])
WIDTHS = st.sampled_from([3, 5, 16, 31, 64, 76, 130])  # a norm of one channel has no gradient but rounding


@fresh
@given(ROWS, WIDTHS, SPARE, DTYPES, SEEDS)
def test_swiglu(rows, width, spare, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    wide = normal(generator, 1, rows, 2 * width + 2 * spare)
    prove(lambda x: [swiglu(part(x, spare))], [wide], dtype, seed)


@fresh
@given(ROWS, WIDTHS, DTYPES, SEEDS)
def test_rms_norm(rows, width, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    leaves = [normal(generator, 2, rows, width), normal(generator, width)]
    prove(lambda x, gain: [rms_norm(x, gain, 1e-6)], leaves, dtype, seed)


@fresh
@given(ROWS, WIDTHS, DTYPES, SEEDS)
def test_add_rms_norm(rows, width, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    leaves = [normal(generator, 1, rows, width), normal(generator, 1, rows, width), normal(generator, width)]
    prove(lambda x, y, gain: add_rms_norm(x, y, gain, 1e-6), leaves, dtype, seed)


@fresh
@given(ROWS, WIDTHS, st.integers(1, 3), st.booleans(), DTYPES, SEEDS)
def test_fusion(rows, width, branches, keep_stream, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (1, rows, width)
    leaves = [normal(generator, *shape) for _ in range(branches + 1)]
    leaves += [normal(generator, branches, width), 1 + 0.3 * normal(generator, width)]

    def run(x, *rest):
        *outs, gains, next_gain = rest
        hidden, stream = fuse(outs, gains, x, next_gain, 1.7, 1e-6, keep_stream=keep_stream)
        return [hidden] if stream is None else [hidden, stream]

    prove(run, leaves, dtype, seed)


def test_dropout_in_the_fusion_keeps_its_share_and_repeats_it_backward():
    generator = torch.Generator().manual_seed(0)
    outs = [torch.randn(1, 24, 48, generator=generator, requires_grad=True) for _ in range(3)]
    gains, next_gain = torch.ones(3, 48), torch.ones(48)
    x = torch.zeros(1, 24, 48)
    torch.manual_seed(3)
    _, stream = fuse(outs, gains, x, next_gain, 1.0, 1e-6, dropout=0.25)
    torch.manual_seed(3)
    _, again = fuse(outs, gains, x, next_gain, 1.0, 1e-6, dropout=0.25)
    assert torch.equal(stream, again)
    # one branch at a time tells what was kept: the others are zero, which the norm leaves zero
    kept = []
    for index in range(3):
        alone = [out.detach() if i == index else torch.zeros_like(out) for i, out in enumerate(outs)]
        torch.manual_seed(3)
        _, part = fuse(alone, gains, x, next_gain, 1.0, 1e-6, dropout=0.25)
        kept.append(part != 0)
        share = kept[-1].float().mean().item()
        assert 0.70 < share < 0.80, share
        normed = rms_norm(outs[index].detach(), torch.ones(48), 1e-6)
        torch.testing.assert_close(part[kept[-1]], normed[kept[-1]] / 0.75)
    assert not torch.equal(kept[0], kept[1]) and not torch.equal(kept[1], kept[2])
    upstream = torch.randn(stream.shape, generator=generator)
    stream.backward(upstream)
    for out, mask in zip(outs, kept, strict=True):
        alone = out.detach().requires_grad_()
        (rms_norm(alone, torch.ones(48), 1e-6) * mask / 0.75).backward(upstream)
        torch.testing.assert_close(out.grad, alone.grad, rtol=1e-5, atol=1e-6)


@fresh
@given(
    st.integers(1, 2),
    st.sampled_from([1, 5, 33]),
    st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    st.sampled_from([2, 6, 16, 60]),
    st.booleans(),
    st.sampled_from(["none", "shared", "own"]),
    SPARE,
    DTYPES,
    SEEDS,
)
def test_rotary(batch, length, heads, size, cosine, tables, spare, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    (count, kv), cos, sin = heads, None, None
    if tables != "none":
        rows = 1 if tables == "shared" else batch
        cos, sin = rope_tables(torch.randint(0, 50, (rows, length), generator=generator), size, 10_000.0)
    leaves = [normal(generator, batch, length, (count + 2 * kv) * size + 2 * spare)]
    leaves += [5 + normal(generator, count).abs()] if cosine else []

    def run(qkv, scale=None):
        return qk_norm_rope(part(qkv, spare), count, kv, scale, cos, sin)

    prove(run, leaves, dtype, seed)


@fresh
@given(st.integers(1, 9), st.sampled_from([2, 61, 256, 4099]), st.integers(1, 4), SEEDS)
def test_cross_entropy(rows, vocabulary, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, vocabulary, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < 0.3] = -100
    leaves = [normal(generator, rows, 8), normal(generator, vocabulary, 8)]
    prove(lambda x, w: [linear_cross_entropy(x, w, labels, chunk)], leaves, torch.float32, seed)


@fresh
@given(st.integers(1, 9), st.sampled_from([2, 61, 256, 4099]), DTYPES, SEEDS)
def test_softmax_of_the_loss(rows, vocabulary, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, vocabulary, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < 0.3] = -100
    logits = (3 * normal(generator, rows, vocabulary)).to(dtype)
    wide = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(wide, labels, ignore_index=-100, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), wide)
    logits_size = logits.abs().max()
    losses = softmax_loss_(logits, labels, -100, True)
    # a loss is the difference of a logarithm and a logit, and may be far smaller than both
    assert (losses - expected).abs().max() < 1e-6 * (1 + logits_size)
    assert relative_error(logits, gradient) < TOLERANCE[dtype]


def test_cross_entropy_bears_large_logits():
    logits = torch.tensor([[3e4, -3e4, 0.0], [-1e4, -1e4, -1e4]])
    hidden, weight = torch.eye(2), logits.T.contiguous()
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1, 2]))
    assert loss.item() == pytest.approx(6e4 + 1.0986123, rel=1e-6)
