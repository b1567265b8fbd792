"""Named configurations: the three sizes of the paper's Table 1, and two small ones. No torch here."""

from __future__ import annotations

import difflib

from model.config import ModelConfig
from model.errors import ModelError

GPT2_VOCAB_SIZE = 50257

PRESETS: dict[str, ModelConfig] = {
    "pha-90m": ModelConfig(vocab_size=GPT2_VOCAB_SIZE, d_model=480, n_layers=14, n_heads=8, n_kv_heads=2, dropout=0.1),
    "pha-125m": ModelConfig(vocab_size=GPT2_VOCAB_SIZE, d_model=608, n_layers=12, n_heads=8, n_kv_heads=2, dropout=0.1),
    "pha-180m": ModelConfig(
        vocab_size=GPT2_VOCAB_SIZE,
        d_model=768,
        n_layers=10,
        n_heads=12,
        n_kv_heads=4,
        ffn_main=2.5,
        ffn_aux=1.25,
        dropout=0.1,
    ),
    "pha-tiny": ModelConfig(d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, ffn_multiple_of=8),
    "pha-nano": ModelConfig(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_multiple_of=8),
}
"""The paper's sizes (arXiv 2606.16093, Table 1, trained at 1,024 tokens), then `pha-tiny` (1.9M parameters at a
vocabulary of 4,096: demonstrations on a laptop) and `pha-nano` (unit tests)."""


def preset(name: str) -> ModelConfig:
    """Return the configuration called `name`.

    Raises:
        ModelError: there is no such preset; the sentence names the nearest one.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
    raise ModelError(
        f"There is no model preset called '{name}'. Did you mean '{near}'? The presets are {', '.join(PRESETS)}."
    )
