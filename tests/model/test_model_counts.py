"""Parameter and operation counts against the torch model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig
from model.errors import ModelError
from model.flops import flops_per_token
from model.lm import LanguageModel
from model.params import count_parameters
from model.presets import PRESETS, preset

PLACES = {
    "embedding": ["embedding."],
    "attention": [".attention."],
    "gss": [".gss."],
    "ffn_aux": [".ffn_aux."],
    "ffn_main": [".ffn_main."],
    "norms": ["norm.", ".norm_"],
    "mixing": [".mixing."],
}


@pytest.mark.parametrize(
    "changes",
    [{}, {"gss": {"decay": "none", "expansion": 1.3}}, {"n_kv_heads": 4, "ffn_aux": 1.25, "n_layers": 3}],
)
def test_formulae_equal_the_model_part_by_part(branches_apart: ModelConfig, changes: dict[str, Any]) -> None:
    config = ModelConfig(**{**branches_apart.model_dump(), **changes})
    model = LanguageModel(config)
    expected = dict.fromkeys(PLACES, 0)
    for name, parameter in model.named_parameters():
        part = next(part for part, marks in PLACES.items() if any(mark in name for mark in marks))
        expected[part] += parameter.numel()
    expected["total"] = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(config) == expected


@pytest.mark.parametrize("name", [name for name in PRESETS if preset(name).vocab_size])
def test_formulae_equal_the_large_presets(name: str) -> None:
    with torch.device("meta"):
        model = LanguageModel(preset(name))
    assert count_parameters(preset(name))["total"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "millions", "tolerance"),
    [("pha-90m", 89.7, 0.01), ("pha-125m", 125, 0.03), ("pha-180m", 180.5, 0.01)],
)
def test_totals_are_those_of_table_1(name: str, millions: float, tolerance: float) -> None:
    assert count_parameters(preset(name))["total"] / 1e6 == pytest.approx(millions, rel=tolerance)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("-tiny")])
def test_the_tiny_presets_have_two_million_parameters(name: str) -> None:
    config = preset(name).model_copy(update={"vocab_size": 4096})
    assert count_parameters(config)["total"] == pytest.approx(1.9e6, rel=0.04)


def test_the_baselines_are_equal_in_what_they_promise() -> None:
    pha = preset("pha-125m")
    total = count_parameters(pha)["total"]
    for name in ("transformer-125m", "transformer-125m-deep"):
        assert count_parameters(preset(name))["total"] == pytest.approx(total, rel=0.006)
    assert preset("transformer-125m").n_layers == preset("transformer-77m").n_layers == pha.n_layers
    assert preset("transformer-77m").d_model == preset("transformer-125m-deep").d_model == pha.d_model
    assert count_parameters(preset("mamba2-125m"))["total"] == pytest.approx(129e6, rel=0.001)
    for name in ("gss-125m", "gss-hybrid-125m", "h3-125m", "h3-hybrid-125m", "hedgehog-125m"):
        assert count_parameters(preset(name))["total"] == pytest.approx(total, rel=0.03)


def test_the_sequential_composition_is_near_table_6() -> None:
    config = ModelConfig(**{**preset("pha-180m").model_dump(), "composition": "sequential", "n_layers": 12})
    assert count_parameters(config)["total"] == pytest.approx(185.8e6, rel=0.025)


def test_matrix_products_equal_torchs_count(build: Callable[..., LanguageModel]) -> None:
    model = build(n_layers=3, ffn_aux=1.25, in_projections="separate")
    rows, length = 2, 7
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(rows, length, dtype=torch.int64))
    counts = counter.get_flop_counts()

    def measured(*places: str) -> int:
        return sum(sum(ops.values()) for name, ops in counts.items() if name.endswith(places))

    parts = {k: v * rows * length for k, v in flops_per_token(model.config, length, backward=False).items()}
    assert measured("attention.qkv", "attention.out") == parts["attention_projections"]
    assert measured("gss.in_proj", "gss.out_proj") == parts["gss_projections"]
    assert measured("ffn_aux.gate_up", "ffn_aux.down") == parts["ffn_aux"]
    assert measured("ffn_main.gate_up", "ffn_main.down") == parts["ffn_main"]
    assert measured(".embedding") == parts["head"]


def test_attention_and_the_scan_by_hand(nano: ModelConfig) -> None:
    # 4 heads of 8 channels see 1, 2, 3 tokens: two products of 2 * 8 operations a pair, in 2 layers.
    parts = flops_per_token(nano, 3, backward=False)
    assert parts["attention_scores"] * 3 == 2 * 4 * (1 + 2 + 3) * 2 * (2 * 8)
    assert parts["scan"] == 2 * 80 * 5
    assert parts["total"] == sum(value for name, value in parts.items() if name != "total")


def test_a_window_costs_what_it_sees(nano: ModelConfig) -> None:
    # With a window of 2 the tokens see 1, 2, 2, 2.
    window = ModelConfig(**{**nano.model_dump(), "attention": {"window": 2}})
    parts = flops_per_token(window, 4, backward=False)
    assert parts["attention_scores"] * 4 == 2 * 4 * (1 + 2 + 2 + 2) * 2 * (2 * 8)
    assert flops_per_token(window, 2) == flops_per_token(nano, 2)


def test_the_ssd_by_hand(nano: ModelConfig) -> None:
    # 4 heads of 16 channels, one group, states of 16, chunks of 4: tokens see 1 to 4 others, 2.5 on average.
    config = ModelConfig(**{**nano.model_dump(), "architecture": "mamba2"})
    parts = flops_per_token(config, 32, backward=False)
    scores, within, state = 2 * 16 * 2.5, 2 * 64 * 2.5, 2 * 2 * 64 * 16
    assert parts["ssd"] == 2 * (scores + within + state)
    assert parts["conv"] == 2 * (64 + 2 * 16) * 4 * 2
    assert parts["ssd_projections"] == 2 * 2 * (32 * (64 + 64 + 32 + 4) + 64 * 32)


def test_h3_by_hand(nano: ModelConfig) -> None:
    # Heads of 2 channels carry 2 sequences a channel; chunks of 4 see 2.5 tokens on average, 4 complex states each.
    settings = {**nano.h3.model_dump(), "head_dim": 2}
    config = ModelConfig(**{**nano.model_dump(), "architecture": "h3", "h3": settings})
    parts = flops_per_token(config, 32, backward=False)
    assert parts["h3_projections"] == 2 * 2 * 4 * 32 * 32
    assert parts["shift"] * 32 == 2 * 2 * 32 * (1 + 2 + 3 + 4 + 5 + 27 * 6)
    assert parts["lti"] == 2 * 2 * 32 * 2 * (2.5 + 4 * 4)
    own = 4 * 32 * 32 + 32 * (6 + 1) + 16 * (1 + 1 + 4 * 4)
    assert count_parameters(config)["h3"] == 2 * own


def test_hedgehog_by_hand(nano: ModelConfig) -> None:
    # 4 query heads and 2 key heads of 8 channels, 16 features each; chunks of 4 see 2.5 tokens on average.
    config = ModelConfig(**{**nano.model_dump(), "architecture": "hedgehog"})
    parts = flops_per_token(config, 32, backward=False)
    assert parts["feature_maps"] == 2 * 2 * 6 * 8 * 8
    assert parts["linear_attention"] == 2 * 2 * (4 * (16 + 8) * 2.5 + (4 + 2) * 16 * 8)
    transformer = ModelConfig(**{**nano.model_dump(), "architecture": "transformer"})
    maps = 2 * 6 * (8 * 8 + 8)
    assert count_parameters(config)["total"] == count_parameters(transformer)["total"] + maps


def test_the_backward_pass_doubles_the_forward_pass(nano: ModelConfig) -> None:
    forward, both = (flops_per_token(nano, 64, backward) for backward in (False, True))
    assert both == {name: 3 * value for name, value in forward.items()}


def test_counts_need_a_vocabulary_and_a_length(nano: ModelConfig) -> None:
    for function in (count_parameters, lambda config: flops_per_token(config, 8)):
        with pytest.raises(ModelError, match="vocab_size is not set"):
            function(preset("pha-nano"))
    with pytest.raises(ModelError, match="sequence length is 0"):
        flops_per_token(nano, 0)
