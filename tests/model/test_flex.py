"""The tiles of FlexAttention's masks: against PyTorch's own, and what attention makes of them, against dense masks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from model import flex
from model.kernels import dispatch
from model.lm import LanguageModel

CPU = torch.device("cpu")
LENGTHS = st.sampled_from([1, 100, 128, 129, 256, 300, 511, 640])
WINDOWS = st.sampled_from([None, 1, 40, 128, 129, 300])


def _segments(length: int, share: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(2, length, generator=generator) < share).cumsum(1)


def _dense(length: int, window: int | None, segments: Tensor | None) -> Tensor:
    """[B or 1, 1, T, T], from the definition."""
    apart = torch.arange(length)[:, None] - torch.arange(length)
    mask = ((apart >= 0) & (apart < (window or length)))[None, None]
    return mask if segments is None else mask & (segments[:, None, :, None] == segments[:, None, None])


@given(LENGTHS, WINDOWS, st.sampled_from([None, 0.0, 0.005, 0.1]), st.integers(0, 2**31 - 1))
def test_the_tiles_are_those_that_pytorch_finds_by_looking_at_every_pair(length, window, share, seed):
    segments = None if share is None else _segments(length, share, seed)
    ours = flex.tile_mask(length, window, segments, CPU)
    theirs = create_block_mask(ours.mask_mod, 1 if share is None else 2, None, length, length, device="cpu")
    assert torch.equal(ours.to_dense(), theirs.to_dense()) and ours.shape == theirs.shape
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for row, count in zip(ours.kv_indices.flatten(0, 2), ours.kv_num_blocks.flatten(), strict=True):
        assert row.unique().numel() == row.numel()  # each tile once, also behind those that count
        assert row[:count].tolist() == sorted(row[:count].tolist())


@given(st.sampled_from([256, 300]), WINDOWS, st.booleans(), st.integers(0, 2**31 - 1))
@torch.no_grad()
def test_attention_by_tiles_is_attention_by_the_dense_mask(length, window, documents, seed):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(2, 4, length, 8, generator=generator)
    keys, values = torch.randn(2, 2, 2, length, 8, generator=generator)
    segments = _segments(length, 0.02, seed) if documents else None
    dense = _dense(length, window, segments)
    expected = scaled_dot_product_attention(queries, keys, values, dense, enable_gqa=True)
    mask = flex.tile_mask(length, window, segments, CPU)
    torch.testing.assert_close(flex_attention(queries, keys, values, block_mask=mask, enable_gqa=True), expected)
    torch.testing.assert_close(flex.tiled_attention(queries, keys, values, mask, None), expected)


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("documents", [False, True])
def test_a_model_is_the_same_with_tiles(
    build: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch, window: int | None, documents: bool
) -> None:
    model = build(attention={"window": window})
    tokens = torch.randint(0, 61, (2, 260), generator=torch.Generator().manual_seed(1))
    segments = _segments(260, 0.02, 3) if documents else None
    checkpoint: Any = torch.utils.checkpoint.checkpoint
    model.set_recompute(lambda block, *args: checkpoint(block, *args, use_reentrant=False), 1)
    found = []
    for tiled in (False, True):
        monkeypatch.setattr(flex, "wanted", lambda *_, tiled=tiled: tiled)
        model.zero_grad()
        loss = model(tokens, segments, labels=tokens)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-4 * dense.abs().max().item())


def test_it_is_wanted_on_gpus_only_and_where_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(dispatch, "installed", lambda: True)
    monkeypatch.setattr(dispatch._state, "mode", "auto")
    monkeypatch.setattr(dispatch._state, "broken", {})
    assert flex.wanted(1024, gpu) and not flex.wanted(200, gpu) and not flex.wanted(1024, CPU)
    monkeypatch.setattr(dispatch._state, "mode", "reference")
    assert not flex.wanted(1024, gpu)
    monkeypatch.setattr(dispatch._state, "mode", "auto")
    monkeypatch.setattr(dispatch._state, "broken", {flex.NAME: "no such instruction"})
    assert not flex.wanted(1024, gpu)


def test_a_compiler_that_fails_is_named_and_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._dynamo.exc import Unsupported

    monkeypatch.setattr(dispatch._state, "broken", {})
    with caplog.at_level(logging.WARNING):
        dispatch.give_up(flex.NAME, Unsupported("no such instruction"))
    assert "The kernel of flex_attention does not compile here" in caplog.text
    assert "no such instruction" in dispatch.broken()[flex.NAME]
    with pytest.raises(RuntimeError, match="out of memory"):
        dispatch.give_up(flex.NAME, RuntimeError("out of memory"))
