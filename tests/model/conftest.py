"""Small models for the tests of the model package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from model.config import GSSConfig, H3Config, HedgehogConfig, MehtaConfig, ModelConfig, SSDConfig
from model.lm import LanguageModel
from model.presets import preset

Build = Callable[..., LanguageModel]


@pytest.fixture
def nano() -> ModelConfig:
    """The smallest preset with a vocabulary of 61 and scan chunks of 4 tokens."""
    mixers = {
        "gss": GSSConfig(chunk=4),
        "ssd": SSDConfig(head_dim=16, state=16, chunk=4),
        "mehta": MehtaConfig(state=16, chunk=4),
        "h3": H3Config(state=4, shift=6, chunk=4),
        "hedgehog": HedgehogConfig(chunk=4),
    }
    return preset("pha-nano").model_copy(update={"vocab_size": 61, **mixers})


@pytest.fixture
def branches_apart(nano: ModelConfig) -> ModelConfig:
    """`nano` whose branches have their own matrices, so that one can be looked at alone."""
    return nano.model_copy(update={"in_projections": "separate"})


@pytest.fixture
def build(nano: ModelConfig) -> Build:
    """Build a seeded nano model; keyword arguments replace fields, mixers' by dictionaries of theirs."""

    def make(seed: int = 0, **fields: Any) -> LanguageModel:
        tree = nano.model_dump()
        for name, value in fields.items():
            tree[name] = {**tree[name], **value} if isinstance(value, dict) else value
        config = ModelConfig(**tree)
        torch.manual_seed(seed)
        model = LanguageModel(config)
        with torch.no_grad():  # leave the symmetric start: equal mixing and unit gains hide mistakes
            for name, parameter in model.named_parameters():
                if (parameter.ndim == 1 and not name.endswith(("gate_bias", "decay"))) or name.endswith(
                    ("mixing.p", "gate_weight")
                ):
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return model

    return make
