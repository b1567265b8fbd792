"""Configuration, presets, and what the light modules import."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from model import architectures
from model.config import ModelConfig
from model.errors import ModelError
from model.presets import PRESETS, preset

SIZES: dict[str, Any] = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n_heads": 5}, "multiple of n_heads (5)"),
        ({"n_kv_heads": 3}, "multiple of n_kv_heads (3)"),
        ({"n_heads": 32, "n_kv_heads": 32}, "must be even"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"d_model": -32}, "d_model is -32"),
        ({"vocab_size": 1}, "vocab_size is 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"ffn_aux": 0.0}, "ffn_aux is 0.0"),
        ({"ffn_multiple_of": 0}, "ffn_multiple_of is 0"),
        ({"embedding_init_std": -0.1}, "embedding_init_std is -0.1"),
        ({"cosine_scale_init": 200.0}, "may not exceed cosine_scale_max"),
        ({"gss": {"expansion": 0.0}}, "gss.expansion is 0.0"),
        ({"gss": {"chunk": 0}}, "gss.chunk is 0"),
        ({"gss": {"timescale_min": 9.0, "timescale_max": 3.0}}, "the minimum may not exceed"),
        ({"branches": []}, "branches is []; it must name at least one of gss, attention, ffn"),
        ({"branches": ["gss", "gss"]}, "each once"),
        ({"attention": {"window": 0}}, "attention.window is 0"),
        ({"architecture": "mamba2", "ssd": {"head_dim": 48}}, "ssd.expand * d_model (64) must be a multiple"),
        ({"architecture": "mamba2", "ssd": {"head_dim": 16, "groups": 3}}, "SSD heads (4) must be a multiple"),
        ({"gss": {"kind": "ssd"}, "ssd": {"head_dim": 48}}, "ssd.head_dim (48)"),
        ({"ssd": {"state": 0}}, "ssd.state is 0"),
        ({"ssd": {"expand": 0.0}}, "ssd.expand is 0.0"),
        ({"ssd": {"dt_min": 0.2}}, "ssd.dt_min is 0.2 and ssd.dt_max is 0.1"),
        ({"ssd": {"a_max": 0.5}}, "ssd.a_min is 1.0 and ssd.a_max is 0.5"),
        ({"mehta": {"narrow": 0.0}}, "mehta.narrow is 0.0"),
        ({"mehta": {"state": 0}}, "mehta.state is 0"),
        ({"mehta": {"dt_min": 0.2}}, "mehta.dt_min is 0.2 and mehta.dt_max is 0.1"),
    ],
)
def test_each_error_is_a_sentence_that_names_its_value(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelConfig(**{**SIZES, **fields})
    messages = [error["msg"].removeprefix("Value error, ") for error in caught.value.errors()]
    assert any(words in message for message in messages)
    assert all(re.fullmatch(r"[\w.]+ .*\.", message) for message in messages), messages


def test_what_an_architecture_has_no_use_for_is_not_checked() -> None:
    assert ModelConfig(architecture="mamba2", d_model=24, n_layers=1, n_heads=7, ssd={"head_dim": 16})
    assert ModelConfig(architecture="transformer", d_model=24, n_layers=1, n_heads=4, ssd={"head_dim": 7})
    assert ModelConfig(d_model=24, n_layers=1, n_heads=7, branches=["gss", "ffn"])
    assert ModelConfig(d_model=20, n_layers=1, n_heads=4, attention={"positions": "none"}).head_dim == 5


@pytest.mark.parametrize("name", ["pha-tiny", "transformer-tiny", "mamba2-tiny"])
def test_one_field_turns_a_preset_into_another_architecture(name: str) -> None:
    for architecture in architectures.ARCHITECTURES:
        config = ModelConfig(**{**preset(name).model_dump(), "architecture": architecture})
        assert len(architectures.layers(config)) == config.n_layers
        assert config.cosine == (architecture == "pha")


def test_unknown_keys_and_changes_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        ModelConfig(**SIZES, layers=3)
    with pytest.raises(ValidationError, match="frozen"):
        ModelConfig(**SIZES).d_model = 64  # type: ignore[misc]


def test_derived_sizes() -> None:
    config = preset("pha-180m")
    assert config.head_dim == 64
    assert (config.ffn_main_size, config.ffn_aux_size, config.gss_size) == (1920, 960, 1920)
    assert config.deepnorm_alpha == pytest.approx(2.115, abs=1e-3)  # 20^(1/4)
    assert config.deepnorm_beta == pytest.approx(0.334, abs=1e-3)  # 80^(-1/4)
    assert ModelConfig(**{**SIZES, "ffn_aux": 0.01, "ffn_multiple_of": 8}).ffn_aux_size == 8
    assert ModelConfig(**{**SIZES, "ffn_aux": 0.67, "ffn_multiple_of": 8}).ffn_aux_size == 24


def test_a_configuration_survives_its_text_form() -> None:
    for config in PRESETS.values():
        assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def test_a_preset_by_name() -> None:
    assert preset("pha-125m") is PRESETS["pha-125m"]
    with pytest.raises(ModelError, match="Did you mean 'pha-125m'"):
        preset("pha_125M")


def test_the_light_modules_do_not_import_torch() -> None:
    modules = "model, model.architectures, model.config, model.errors, model.presets, model.params, model.flops"
    program = f"import sys; import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
