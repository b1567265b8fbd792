"""Parameter counts as closed formulae. It does not import torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from model import architectures
from model.architectures import Layer
from model.config import ModelConfig
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


def _attention(config: ModelConfig) -> int:
    d, kv_width = config.d_model, config.n_kv_heads * config.head_dim
    return 2 * d * d + 2 * d * kv_width + (config.n_heads if config.cosine else 0)


def _gss(config: ModelConfig) -> int:
    if config.gss.kind != "gated":
        return {"ssd": _ssd, "mehta": _mehta}[config.gss.kind](config)
    per_channel = 2 if config.gss.decay == "real" else 1
    return 4 * config.d_model * config.gss_size + per_channel * config.gss_size


def _ssd(config: ModelConfig) -> int:
    """Both projections, filters with their biases, three numbers a head, and the gains of the gated norm."""
    size, heads, settings = config.ssd_size, config.ssd_heads, config.ssd
    convolved = size + 2 * settings.groups * settings.state
    return config.d_model * (2 * size + convolved + heads) + convolved * (settings.conv + 1) + 3 * heads + size


def _mehta(config: ModelConfig) -> int:
    """Four maps, the shared decays and frequencies, a complex output map, and the skip."""
    d, narrow, wide, states = config.d_model, config.mehta_narrow_size, config.mehta_wide_size, config.mehta.state
    return d * narrow + d * wide + narrow * wide + wide * d + 2 * states + 2 * narrow * states + narrow


def _selective(config: ModelConfig) -> int:
    """The maps of attention, and the gate with its bias."""
    d, kv_width = config.d_model, config.n_kv_heads * config.head_dim
    return 2 * d * d + 2 * d * kv_width + 2 * d + 2


def _h3(config: ModelConfig) -> int:
    """Four maps, filters with their skips, and for each head step, skip, decays, frequencies and an output map."""
    d, settings = config.d_model, config.h3
    return 4 * d * d + d * (settings.shift + 1) + d // settings.head_dim * (2 + 4 * settings.state)


def _hedgehog(config: ModelConfig) -> int:
    """Attention, and a map with its bias for each query head and each key head."""
    return _attention(config) + (config.n_heads + config.n_kv_heads) * config.head_dim * (config.head_dim + 1)


PARAMETERS: dict[str, Callable[[ModelConfig], int]] = {
    "attention": _attention,
    "gss": _gss,
    "ssd": _ssd,
    "selective": _selective,
    "mehta": _mehta,
    "h3": _h3,
    "hedgehog": _hedgehog,
    "ffn_aux": lambda config: 3 * config.d_model * config.ffn_aux_size,
    "ffn_main": lambda config: 3 * config.d_model * config.ffn_main_size,
}
"""Parameters of one layer's part, by its name in `model.architectures`."""


def _mixing(config: ModelConfig) -> int:
    branches = len(config.mixed_branches)
    return branches * {"mean": 0, "softplus": 1, "softmax": 1}.get(config.mixing, config.d_model)


def _layer(config: ModelConfig, layer: Layer) -> Counter[str]:
    counts = Counter({part: PARAMETERS[part](config) for part in layer.parts})
    counts["norms"] = len(layer.parts) * config.d_model
    if layer.parallel:  # the shared norm, and the one before the main FFN
        counts["norms"] += 2 * config.d_model
        counts["ffn_main"] += PARAMETERS["ffn_main"](config)
        counts["mixing"] += _mixing(config)
    return counts


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Count the parameters of each part that the model has, and `total`.

    The embedding is tied to the head and counted once. `norms` holds the gains before and after parts, and the final
    one; a norm inside a mixer counts with it.

    Raises:
        ModelError: `vocab_size` is None.
    """
    counts = Counter({"embedding": require_vocab_size(config) * config.d_model, "norms": config.d_model})
    for layer in architectures.layers(config):
        counts.update(_layer(config, layer))
    parts = {name: count for name, count in counts.items() if count}
    return {**parts, "total": sum(parts.values())}
