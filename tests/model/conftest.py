"""Small models for the tests of the model package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from model.config import GSSConfig, ModelConfig
from model.lm import LanguageModel
from model.presets import preset

Build = Callable[..., LanguageModel]


@pytest.fixture
def nano() -> ModelConfig:
    """The smallest preset with a vocabulary of 61 and scan chunks of 4 tokens."""
    return preset("pha-nano").model_copy(update={"vocab_size": 61, "gss": GSSConfig(chunk=4)})


@pytest.fixture
def build(nano: ModelConfig) -> Build:
    """Build a seeded nano model; keyword arguments replace fields, `gss` by a dictionary of its fields."""

    def make(seed: int = 0, **fields: Any) -> LanguageModel:
        gss = {**nano.gss.model_dump(), **fields.pop("gss", {})}
        config = ModelConfig(**{**nano.model_dump(), **fields, "gss": gss})
        torch.manual_seed(seed)
        model = LanguageModel(config)
        with torch.no_grad():  # leave the symmetric start: equal mixing and unit gains hide mistakes
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1 and not name.endswith(("gate_bias", "decay")):
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return model

    return make
