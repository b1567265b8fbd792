"""Sliding-window attention by blocks against every pair by itself, and its ring of keys and values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.cache import WindowKeyValues
from model.config import ModelConfig
from model.lm import LanguageModel
from model.presets import preset
from model.window import banded_attention, block_size, window_mask


def _slow(queries: Tensor, keys: Tensor, values: Tensor, window: int, segments: Tensor | None) -> Tensor:
    """[B, heads, T, d] in float64, one query at a time; keys begin with the remembered ones."""
    batch, heads, length, size = queries.shape
    past = keys.shape[2] - length
    out = torch.zeros(queries.shape, dtype=torch.float64)
    for row in range(batch):
        for t in range(length):
            seen = range(max(0, past + t - window + 1), past + t + 1)
            seen = [s for s in seen if segments is None or segments[row, s] == segments[row, t]]
            for head in range(heads):
                kv = head // (heads // keys.shape[1])
                scores = keys[row, kv, seen].double() @ queries[row, head, t].double() / size**0.5
                out[row, head, t] = scores.softmax(0) @ values[row, kv, seen].double()
    return out


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(
    ("window", "length", "past"),
    [(1, 130, 0), (3, 129, 0), (3, 200, 2), (7, 191, 1), (64, 193, 63), (70, 141, 30), (70, 281, 0), (9, 20, 5)],
)
def test_the_band_is_exact(window: int, length: int, past: int, documents: bool) -> None:
    torch.manual_seed(0)
    queries = torch.randn(2, 4, length, 8)
    keys, values = torch.randn(2, 2, 2, past + length, 8)
    segments = None
    if documents:
        if past:
            return  # a call with remembered keys has one document a row
        segments = (torch.rand(2, length) < 0.05).cumsum(1)
    mask = window_mask(window, length, past, segments, queries.device)
    if mask.ndim == 5:
        mixed = banded_attention(queries, keys, values, mask, None)
    else:
        mixed = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, mask, enable_gqa=True)
    assert (mask.ndim == 5) == (length > 2 * block_size(window))
    torch.testing.assert_close(mixed.double(), _slow(queries, keys, values, window, segments), rtol=1e-4, atol=1e-5)


def test_gradients_are_finite_in_padded_blocks() -> None:
    leaves = [torch.randn(1, 2, 131, 4, requires_grad=True) for _ in range(3)]
    banded_attention(*leaves, window_mask(5, 131, 0, None, leaves[0].device), None).sum().backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def test_the_mask_of_a_long_text_follows_its_length() -> None:
    window, length = 32, 50_000
    mask = window_mask(window, length, 0, None, torch.device("cpu"))
    assert mask.numel() <= (length + block_size(window)) * (block_size(window) + window)


def test_a_window_as_long_as_the_text_is_no_window(build: Callable[..., LanguageModel]) -> None:
    tokens = torch.randint(0, 61, (2, 150), generator=torch.Generator().manual_seed(2))
    free, bound, narrow = (build(attention={"window": window}) for window in (None, 150, 149))
    assert torch.equal(free(tokens), bound(tokens))
    torch.testing.assert_close(narrow(tokens)[:, :149], free(tokens)[:, :149])
    assert not torch.allclose(narrow(tokens)[:, 149], free(tokens)[:, 149], atol=1e-7)


@pytest.mark.parametrize("pieces", [[1] * 12, [12], [2, 2, 2, 6], [3, 1, 1, 1, 5, 1], [7, 4, 1]])
def test_the_ring_gives_what_the_last_token_may_see(pieces: list[int]) -> None:
    window = 4
    memory = WindowKeyValues(torch.zeros(1, 1, window, 1), torch.zeros(1, 1, window, 1))
    seen = 0
    for piece in pieces:
        tokens = torch.arange(seen, seen + piece, dtype=torch.float32)[None, None, :, None]
        keys, values = memory.append(tokens, -tokens)
        first = max(0, seen - (window - 1))
        seen += piece
        assert torch.equal(keys, -values)
        found = keys[0, 0, :, 0].tolist()
        assert (sorted(found) if piece == 1 else found) == list(range(first, seen))
    assert memory.keys.numel() == window and memory.seen == seen


@torch.no_grad()
def test_a_long_text_in_parts_equals_the_whole() -> None:
    """Blocks, their remembered keys and the ring together, at their real size."""
    tree = {**preset("transformer-nano").model_dump(), "vocab_size": 61, "attention": {"window": 10}}
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(**tree)).eval()
    tokens = torch.randint(0, 61, (1, 700))
    cache = model.new_cache(1, 1)
    parts = [model(piece, cache=cache) for piece in tokens.split([300, 1, 1, 150, 64, 184], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-4, atol=1e-5)
