"""Floating point operations of a training step as closed formulae. It does not import torch."""

from __future__ import annotations

from model.config import ModelConfig
from model.errors import ModelError
from model.params import require_vocab_size

SCAN_FLOPS_PER_CHANNEL = 5
"""h = a h + x is two; the products decay * gate, gate * input and state * filter are three."""

BACKWARD_FACTOR = 3
"""Forward plus backward: each product of the forward pass has two in the backward pass."""


def flops_per_token(config: ModelConfig, seq_len: int, backward: bool = True) -> dict[str, float]:
    """Floating point operations per token, by part, and `total` (the sum of the parts).

    A product of [m, k] and [k, n] counts 2mnk. Attention scores and their use count at the average number of
    visible tokens, (T + 1) / 2, whatever the kernel wastes above the diagonal; one document a sequence is
    assumed. The head counts, the embedding's lookup does not. `scan` holds the elementwise work of the
    recurrence; norms, activations, softmax and rotary embeddings are left out. Recomputed activations are not
    counted (they are not useful work).

    Args:
        config: the model.
        seq_len: T, tokens in a sequence.
        backward: count the backward pass too (three times the forward pass).

    Raises:
        ModelError: `vocab_size` is None or `seq_len` is below 1.
    """
    if seq_len < 1:
        raise ModelError(f"The sequence length is {seq_len}; it must be at least 1 token.")
    d, state, layers = config.d_model, config.gss_size, config.n_layers
    kv_width = config.n_kv_heads * config.head_dim
    visible = (seq_len + 1) / 2
    forward = {
        "attention_projections": layers * 2.0 * (2 * d * d + 2 * d * kv_width),
        "attention_scores": layers * 2.0 * 2 * d * visible,
        "gss_projections": layers * 2.0 * 4 * d * state,
        "scan": float(layers * SCAN_FLOPS_PER_CHANNEL * state),
        "ffn_aux": layers * 2.0 * 3 * d * config.ffn_aux_size,
        "ffn_main": layers * 2.0 * 3 * d * config.ffn_main_size,
        "head": 2.0 * d * require_vocab_size(config),
    }
    factor = BACKWARD_FACTOR if backward else 1
    parts = {name: factor * value for name, value in forward.items()}
    return {**parts, "total": sum(parts.values())}
