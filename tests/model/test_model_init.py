"""The first loss, and the parameters' starting values."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from model.config import GSSConfig, ModelConfig
from model.gss import timescales
from model.lm import LanguageModel


@pytest.mark.parametrize("residual", ["normed", "raw", "none"])
@pytest.mark.parametrize(("size", "heads", "layers"), [(32, 4, 6), (128, 4, 4), (480, 8, 2), (768, 12, 2)])
def test_the_first_loss_is_that_of_a_uniform_guess(size: int, heads: int, layers: int, residual: str) -> None:
    vocab = 4096
    torch.manual_seed(0)
    model = LanguageModel(
        ModelConfig(
            vocab_size=vocab,
            d_model=size,
            n_layers=layers,
            n_heads=heads,
            n_kv_heads=2,
            main_residual=residual,
        )
    )
    tokens = torch.randint(0, vocab, (2, 65))
    with torch.no_grad():
        other = model(tokens[:, :-1], labels=tokens[:, 1:]).item() / 128
        same = model(tokens[:, :-1], labels=tokens[:, :-1]).item() / 128
    assert other == pytest.approx(math.log(vocab), abs=0.1)
    assert same > math.log(vocab) - 1.5  # no confident bet on repeating the input


def test_a_given_embedding_size_is_used(build: Callable[..., LanguageModel]) -> None:
    assert build(embedding_init_std=0.3, vocab_size=2000).embedding.weight.std().item() == pytest.approx(0.3, rel=0.05)
    assert build(vocab_size=2000).embedding.weight.std().item() == pytest.approx(1 / 32, rel=0.05)


@pytest.mark.parametrize("decay", ["real", "none"])
def test_the_state_forgets_at_the_configured_timescales(decay: str) -> None:
    config = ModelConfig(
        vocab_size=7,
        d_model=32,
        n_layers=1,
        n_heads=2,
        n_kv_heads=2,
        gss=GSSConfig(decay=decay, timescale_min=3, timescale_max=500),
    )
    gss = LanguageModel(config).layers[0].gss
    a = torch.sigmoid(gss.gate_bias)
    if gss.decay is not None:
        a = a * torch.exp(-torch.nn.functional.softplus(gss.decay))
    measured = -1 / torch.log(a.double())
    torch.testing.assert_close(measured, timescales(config), rtol=1e-3, atol=0)
    assert measured[0].item() == pytest.approx(3, rel=1e-3) and measured[-1].item() == pytest.approx(500, rel=1e-3)
    steps = measured.log().diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=0.1, atol=0)


def test_deepnorm_scales_the_right_matrices(build: Callable[..., LanguageModel]) -> None:
    model = build(d_model=128, n_layers=8, in_projections="separate")
    beta = model.config.deepnorm_beta
    block = model.layers[3]
    kv = block.attention.kv_heads * block.attention.head_dim
    queries, keys, values = block.attention.qkv.weight.split([128, kv, kv])
    expected = [
        *((part, 1.0) for part in (queries, keys)),
        *((part, 1.0) for part in block.gss.in_proj.weight.chunk(3)),
        *((part, beta) for part in (values, block.attention.out.weight, block.gss.out_proj.weight)),
        *((part, beta) for ffn in (block.ffn_main, block.ffn_aux) for part in ffn.gate_up.weight.chunk(2)),
        *((ffn.down.weight, beta) for ffn in (block.ffn_main, block.ffn_aux)),
    ]
    for part, gain in expected:
        xavier = math.sqrt(2 / sum(part.shape))
        assert part.std().item() == pytest.approx(gain * xavier, rel=0.05)


def test_one_seed_gives_one_model(build: Callable[..., LanguageModel]) -> None:
    first, same, other = (build(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])
