"""Every architecture and variant that the tests of all architectures run over: changes to the nano configuration."""

from __future__ import annotations

from typing import Any

OPEN = {"window": 5, "budget": 0.5, "noise": False}
"""Selective attention that about half of the tokens reach, without noise, so that two calls choose alike."""

CASES: dict[str, dict[str, Any]] = {
    "pha": {},
    "pha-rglru": {"gss": {"input_scale": "rglru"}},
    "pha-signed": {"gss": {"gates": "signed"}},
    "pha-ssd": {"gss": {"kind": "ssd"}},
    "pha-mehta": {"gss": {"kind": "mehta"}},
    "pha-window": {"attention": {"window": 5}},
    "pha-plain": {"attention": {"scores": "plain"}},
    "pha-sequential": {"composition": "sequential"},
    "pha-sequential-ssd": {"composition": "sequential", "gss": {"kind": "ssd"}},
    "pha-attention-only": {"branches": ["attention"]},
    "pha-no-gss": {"branches": ["attention", "ffn"]},
    "pha-no-aux": {"branches": ["gss", "attention"]},
    "pha-no-attention": {"branches": ["gss", "ffn"]},
    "pha-gss-only": {"branches": ["gss"]},
    "pha-softmax": {"mixing": "softmax"},
    "pha-mean": {"mixing": "mean"},
    "pha-per-channel": {"mixing": "per_channel"},
    "pha-token-gate": {"mixing": "token_gate"},
    "transformer": {"architecture": "transformer"},
    "transformer-cosine": {"architecture": "transformer", "attention": {"scores": "cosine"}},
    "transformer-window": {"architecture": "transformer", "attention": {"window": 4}},
    "transformer-no-positions": {"architecture": "transformer", "attention": {"positions": "none"}},
    "mamba2": {"architecture": "mamba2"},
    "taipan": {"architecture": "taipan", "taipan": {**OPEN, "every": 1}},
    "taipan-no-block-ffn": {"architecture": "taipan", "taipan": {**OPEN, "every": 2, "block_ffn": False}},
    "mamba2-unscaled": {"architecture": "mamba2", "embedding_scale": "none"},
    "gss": {"architecture": "gss"},
    "gss-random": {"architecture": "gss", "mehta": {"init": "random", "narrow": 0.5}},
    "gss-hybrid": {"architecture": "gss-hybrid"},
    "gss-hybrid-window": {
        "architecture": "gss-hybrid",
        "mehta": {"attention_every": 2},
        "attention": {"window": 5},
    },
    "h3": {"architecture": "h3"},
    "h3-heads": {"architecture": "h3", "h3": {"head_dim": 2, "shift": 2}},
    "h3-hybrid": {"architecture": "h3-hybrid", "h3": {"attention_layers": [0]}},
    "hedgehog": {"architecture": "hedgehog"},
    "hedgehog-cosine": {"architecture": "hedgehog", "attention": {"scores": "cosine"}, "n_kv_heads": 4},
    "mamba2-groups": {"architecture": "mamba2", "ssd": {"groups": 2, "conv": 3, "expand": 4.0}},
}
