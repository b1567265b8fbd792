"""Floating point operations of a training step as closed formulae. It does not import torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from model import architectures
from model.config import ModelConfig
from model.errors import ModelError
from model.params import require_vocab_size

SCAN_FLOPS_PER_CHANNEL = 5
"""h = a h + x is two; the products decay * gate, gate * input and state * filter are three."""

BACKWARD_FACTOR = 3
"""Forward plus backward: each product of the forward pass has two in the backward pass."""

Flops = dict[str, float]
"""Operations a token in the forward pass of one layer's part, by what they are spent on."""


def visible(seq_len: int, window: int | None) -> float:
    """Average number of tokens that a token sees, itself included: (T + 1) / 2 without a window."""
    near = seq_len if window is None else min(seq_len, window)
    return (near * (near + 1) / 2 + (seq_len - near) * near) / seq_len


def _attention(config: ModelConfig, seq_len: int) -> Flops:
    d, kv_width = config.d_model, config.n_kv_heads * config.head_dim
    return {
        "attention_projections": 2.0 * (2 * d * d + 2 * d * kv_width),
        "attention_scores": 2.0 * 2 * d * visible(seq_len, config.attention.window),
    }


def _gss(config: ModelConfig, seq_len: int) -> Flops:
    if config.gss.kind != "gated":
        return {"ssd": _ssd, "mehta": _mehta}[config.gss.kind](config, seq_len)
    size = config.gss_size
    return {"gss_projections": 2.0 * 4 * config.d_model * size, "scan": float(SCAN_FLOPS_PER_CHANNEL * size)}


def _ssd(config: ModelConfig, seq_len: int) -> Flops:
    """Within a chunk a token meets those before it, as in attention; across chunks it writes and reads the state."""
    size, heads, settings = config.ssd_size, config.ssd_heads, config.ssd
    mapped = 2 * settings.groups * settings.state
    near = visible(min(seq_len, settings.chunk), None)
    within = (settings.groups * settings.state + size) * near
    return {
        "ssd_projections": 2.0 * config.d_model * (3 * size + mapped + heads),
        "conv": 2.0 * settings.conv * (size + mapped),
        "ssd": 2.0 * (within + 2 * size * settings.state),
    }


def _selective(config: ModelConfig, seq_len: int) -> Flops:
    """All tokens have keys and values, and only the budget's share of them attends; queries are mapped for all."""
    d, kv_width, settings = config.d_model, config.n_kv_heads * config.head_dim, config.taipan
    return {
        "selective_projections": 2.0 * (2 * d * d + 2 * d * kv_width),
        "selective_gate": 2.0 * 2 * d,
        "selective_scores": settings.budget * 2.0 * 2 * d * visible(seq_len, settings.window),
    }


def _mehta(config: ModelConfig, seq_len: int) -> Flops:
    """Within a chunk one number a pair of tokens; across chunks N complex states are written and read."""
    d, narrow, wide = config.d_model, config.mehta_narrow_size, config.mehta_wide_size
    near = visible(min(seq_len, config.mehta.chunk), None)
    return {
        "mehta_projections": 2.0 * (d * narrow + d * wide + narrow * wide + wide * d),
        "lti": 2.0 * narrow * (near + 4 * config.mehta.state),
    }


def _h3(config: ModelConfig, seq_len: int) -> Flops:
    """One product a tap of the filter; the diagonal state space as in `_mehta`, for head_dim sequences a channel."""
    d, settings = config.d_model, config.h3
    near = visible(min(seq_len, settings.chunk), None)
    return {
        "h3_projections": 2.0 * 4 * d * d,
        "shift": 2.0 * d * visible(seq_len, settings.shift),
        "lti": 2.0 * d * settings.head_dim * (near + 4 * settings.state),
    }


def _hedgehog(config: ModelConfig, seq_len: int) -> Flops:
    """Within a chunk as in attention, with 2 head_dim features; across chunks a state is written and read."""
    d, size, kv_width = config.d_model, config.head_dim, config.n_kv_heads * config.head_dim
    near = visible(min(seq_len, config.hedgehog.chunk), None)
    features = 2 * size
    return {
        "attention_projections": 2.0 * (2 * d * d + 2 * d * kv_width),
        "feature_maps": 2.0 * (d + kv_width) * size,
        "linear_attention": 2.0 * (config.n_heads * (features + size) * near + (d + kv_width) * features),
    }


def _ffn(name: str) -> Callable[[ModelConfig, int], Flops]:
    return lambda config, seq_len: {name: 2.0 * 3 * config.d_model * getattr(config, f"{name}_size")}


FLOPS: dict[str, Callable[[ModelConfig, int], Flops]] = {
    "attention": _attention,
    "gss": _gss,
    "ssd": _ssd,
    "selective": _selective,
    "mehta": _mehta,
    "h3": _h3,
    "hedgehog": _hedgehog,
    "ffn_aux": _ffn("ffn_aux"),
    "ffn_main": _ffn("ffn_main"),
}
"""Operations of one layer's part, by its name in `model.architectures`."""


def flops_per_token(config: ModelConfig, seq_len: int, backward: bool = True) -> dict[str, float]:
    """Floating point operations per token, by part, and `total` (the sum of the parts).

    A product of [m, k] and [k, n] counts 2mnk. Attention scores and their use count at the average number of
    visible tokens, whatever the kernel wastes above the diagonal; so do the products within a chunk of the SSD. One
    document a sequence is assumed. The head counts, the embedding's lookup does not. `scan` holds the elementwise
    work of the recurrence; norms, activations, softmax and rotary embeddings are left out. Recomputed activations
    are not counted (they are not useful work).

    Args:
        config: the model.
        seq_len: T, tokens in a sequence.
        backward: count the backward pass too (three times the forward pass).

    Raises:
        ModelError: `vocab_size` is None or `seq_len` is below 1.
    """
    if seq_len < 1:
        raise ModelError(f"The sequence length is {seq_len}; it must be at least 1 token.")
    forward: Flops = defaultdict(float)
    for layer in architectures.layers(config):
        for part in (*layer.parts, *(["ffn_main"] if layer.parallel else [])):
            for name, value in FLOPS[part](config, seq_len).items():
                forward[name] += value
    forward["head"] = 2.0 * config.d_model * require_vocab_size(config)
    factor = BACKWARD_FACTOR if backward else 1
    parts = {name: factor * value for name, value in forward.items()}
    return {**parts, "total": sum(parts.values())}
