"""Parameter groups for AdamW: what decays, what does not."""

from __future__ import annotations

from typing import Any

from model.lm import LanguageModel
from pretrain.config import OptimConfig


def parameter_groups(model: LanguageModel, optim: OptimConfig) -> list[dict[str, Any]]:
    """The model's groups as torch optimizers want them; the model knows which of its parameters may decay.

    What is frozen is left out, and so is a group without parameters.
    """
    groups = [
        {
            "name": group.name,
            "params": [parameter for _, parameter in group.parameters if parameter.requires_grad],
            "weight_decay": optim.weight_decay if group.decay else 0.0,
        }
        for group in model.parameter_groups()
    ]
    return [group for group in groups if group["params"]]
