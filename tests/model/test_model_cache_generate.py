"""Prefill, decoding and sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model.errors import ModelError
from model.generate import filter_logits, generate
from model.lm import LanguageModel

Build = Callable[..., LanguageModel]


def _tokens(rows: int, length: int) -> Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("rglru", [False, True])
@pytest.mark.parametrize("pieces", [[17], [1] * 17, [9, 1, 1, 6], [1, 16], [5, 12], [16, 1]])
@torch.no_grad()
def test_pieces_through_the_cache_equal_one_call(build: Build, pieces: list[int], rglru: bool) -> None:
    model = build(gss={"input_scale": "rglru" if rglru else "none"}).eval()
    tokens = _tokens(2, 17)
    cache = model.new_cache(2, 20)
    outputs = []
    for piece in tokens.split(pieces, dim=1):
        outputs.append(model(piece, cache=cache))
    assert cache.position == 17
    torch.testing.assert_close(torch.cat(outputs, dim=1), model(tokens), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_cache_that_does_not_fit(build: Build) -> None:
    model = build()
    cache = model.new_cache(1, 3)
    model(_tokens(1, 2), cache=cache)
    with pytest.raises(ModelError, match="holds 3 tokens and 4 are needed"):
        model(_tokens(1, 2), cache=cache)
    assert cache.position == 2
    with pytest.raises(ModelError, match="for 2 rows and got 1"):
        model(_tokens(1, 3), cache=model.new_cache(2, 3))
    with pytest.raises(ModelError, match="not both"):
        model(_tokens(1, 3), torch.zeros(1, 3), cache=model.new_cache(1, 3))
    with torch.enable_grad(), pytest.raises(ModelError, match="no_grad"):
        model(_tokens(1, 3), cache=model.new_cache(1, 3))


def _greedy(model: LanguageModel, prompt: Tensor, count: int) -> list[list[int]]:
    """Reference: no cache, the whole text again for each token."""
    tokens = prompt
    with torch.no_grad():
        for _ in range(count):
            tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return tokens[:, prompt.shape[1] :].tolist()


def _sharp(build: Build) -> LanguageModel:
    """A model with a wide spread of logits, and no residual path that would make it repeat its input."""
    return build(embedding_init_std=0.2, main_residual="none")


def test_greedy_and_top_one_equal_the_reference(build: Build) -> None:
    model = _sharp(build).eval()
    prompt = _tokens(3, 5)
    expected = _greedy(model, prompt, 8)
    assert all(len(set(row)) > 3 for row in expected)
    assert generate(model, prompt, 8, temperature=0.0) == expected
    assert generate(model, prompt, 8, top_k=1) == expected
    assert generate(model, prompt, 8, top_p=1e-9) == expected


def test_a_seed_decides_the_sample(build: Build) -> None:
    model = _sharp(build)
    prompt = _tokens(2, 5)

    def sample(seed: int) -> list[list[int]]:
        return generate(model, prompt, 12, temperature=1.5, generator=torch.Generator().manual_seed(seed))

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert all(len(row) == 12 for row in sample(1))


def test_the_stop_token_ends_its_row_only(build: Build) -> None:
    model = _sharp(build).eval()
    prompt = _tokens(3, 5)
    full = _greedy(model, prompt, 8)
    stop = full[0][2]
    expected = [row[: row.index(stop)] if stop in row else row for row in full]
    assert generate(model, prompt, 8, temperature=0.0, stop_token=stop) == expected
    assert len(expected[0]) <= 2
    assert any(len(row) > len(expected[0]) for row in expected)


def test_generation_ends_once_all_rows_have_stopped(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _sharp(build)
    prompt = _tokens(1, 5)
    stop = _greedy(model, prompt, 1)[0][0]
    calls = []
    model.register_forward_hook(lambda *_: calls.append(model.training))
    assert generate(model, prompt, 50, temperature=0.0, stop_token=stop) == [[]]
    assert calls == [False]
    assert model.training
    assert generate(model, prompt, 0) == [[]]


def test_filters() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()[:, [2, 0, 3, 1]]

    def kept(top_k: int | None, top_p: float | None) -> list[int]:
        return filter_logits(logits, top_k, top_p)[0].isfinite().nonzero().flatten().tolist()

    assert kept(None, None) == [0, 1, 2, 3]
    assert kept(2, None) == [1, 3]
    assert kept(9, 1.0) == [0, 1, 2, 3]
    assert kept(None, 0.4) == [1]
    assert kept(None, 0.6) == [1, 3]
    assert kept(None, 0.9) == [0, 1, 3]
    assert kept(2, 0.55) == [1]  # 0.5 / 0.8 is above 0.55 once the others are gone


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"tokens": torch.zeros(1, 0, dtype=torch.int64)}, "prompt has shape"),
    ],
)
def test_settings_out_of_range(build: Build, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        generate(build(), **{"tokens": _tokens(1, 2), "max_new_tokens": 1, **settings})
