"""Parameter counts as closed formulae. It does not import torch."""

from __future__ import annotations

from model.config import BRANCHES, ModelConfig
from model.errors import ModelError


def require_vocab_size(config: ModelConfig) -> int:
    """Return the vocabulary's size.

    Raises:
        ModelError: the configuration leaves it to the dataset (None).
    """
    if config.vocab_size is None:
        raise ModelError(
            "model.vocab_size is not set, but it fixes the size of the embedding. Set it, or let the trainer "
            "take it from the dataset."
        )
    return config.vocab_size


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Count the parameters of each part, and `total`. The embedding is tied to the head and counted once.

    `norms` holds five gains a layer (shared, one a branch, before the main FFN) and the final one.

    Raises:
        ModelError: `vocab_size` is None.
    """
    d, layers, state = config.d_model, config.n_layers, config.gss_size
    kv_width = config.n_kv_heads * config.head_dim
    per_channel = 2 if config.gss.decay == "real" else 1
    parts = {
        "embedding": require_vocab_size(config) * d,
        "attention": layers * (2 * d * d + 2 * d * kv_width + config.n_heads),
        "gss": layers * (4 * d * state + per_channel * state),
        "ffn_aux": layers * 3 * d * config.ffn_aux_size,
        "ffn_main": layers * 3 * d * config.ffn_main_size,
        "norms": layers * (len(BRANCHES) + 2) * d + d,
        "mixing": layers * len(BRANCHES),
    }
    return {**parts, "total": sum(parts.values())}
