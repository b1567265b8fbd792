"""The models that probes compare: any architecture or preset, at one width and depth."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from model.architectures import ARCHITECTURES
from model.config import ModelConfig
from model.presets import PRESETS
from pretrain.config_file import Tree, apply_override, merge, validated
from pretrain.errors import RunError

SMALL: Tree = {
    "n_heads": 4,
    "n_kv_heads": 4,
    "ffn_main": 2.0,
    "ffn_multiple_of": 8,
    "ssd": {"head_dim": 16, "state": 16, "chunk": 32},
    "mehta": {"state": 32, "chunk": 32},
}
"""What an architecture named without a preset has beside its width and depth."""


def _embedding(width: int) -> Tree:
    """Vectors of length near 1 without a factor, for all models.

    The usual start of a language model, 1/d or 0.02 with a tied head, is a tenth of that. At the learning rates of the
    probes a step of Adam then turns every token's vector by a large part of itself, and recall, which must tell keys
    apart, is hardly learned.
    """
    return {"embedding_scale": "none", "embedding_init_std": width**-0.5}


def resolve(spec: str, overrides: Sequence[str], width: int, layers: int, vocab: int) -> ModelConfig:
    """The model of `NAME` or `NAME:key=value,key=value`, where NAME is an architecture or a preset.

    Overrides of all models come after the preset and before those of the spec; keys are those of `model`, with or
    without that prefix.

    Raises:
        RunError: an unknown name or key, or a value that breaks a rule.
    """
    name, _, own = spec.partition(":")
    size: dict[str, Any] = {
        "d_model": width,
        "n_layers": layers,
        "vocab_size": vocab,
        "dropout": 0.0,
        **_embedding(width),
    }
    if name in PRESETS:
        tree = merge(PRESETS[name].model_dump(), size)
    elif name in ARCHITECTURES:
        tree = merge({"architecture": name, **copy.deepcopy(SMALL)}, size)  # overrides change it in place
    else:
        raise RunError(
            f"There is no architecture or preset called '{name}'; the architectures are {', '.join(ARCHITECTURES)}, "
            f"and the presets {', '.join(PRESETS)}."
        )
    for override in (*overrides, *(part for part in own.split(",") if part)):
        apply_override(tree, override.removeprefix("model."))
    return validated(ModelConfig, tree, spec)
