"""Named configurations: each architecture at about 125 million parameters and in two small sizes. No torch here."""

from __future__ import annotations

import difflib

from model.config import AttentionConfig, H3Config, HedgehogConfig, MehtaConfig, ModelConfig, SSDConfig, TaipanConfig
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
    "transformer-125m": ModelConfig(
        architecture="transformer",
        vocab_size=GPT2_VOCAB_SIZE,
        d_model=768,
        n_layers=12,
        n_heads=12,
        n_kv_heads=4,
        ffn_main=3.0,
        dropout=0.1,
    ),
    "transformer-125m-deep": ModelConfig(
        architecture="transformer",
        vocab_size=GPT2_VOCAB_SIZE,
        d_model=608,
        n_layers=24,
        n_heads=8,
        n_kv_heads=2,
        ffn_main=2.58,
        dropout=0.1,
    ),
    "transformer-77m": ModelConfig(
        architecture="transformer",
        vocab_size=GPT2_VOCAB_SIZE,
        d_model=608,
        n_layers=12,
        n_heads=8,
        n_kv_heads=2,
        ffn_main=8 / 3,
        dropout=0.1,
    ),
    "transformer-tiny": ModelConfig(
        architecture="transformer",
        d_model=128,
        n_layers=8,
        n_heads=4,
        n_kv_heads=2,
        ffn_main=2.5,
        ffn_multiple_of=8,
    ),
    "transformer-nano": ModelConfig(
        architecture="transformer", d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_multiple_of=8
    ),
    "mamba2-125m": ModelConfig(
        architecture="mamba2", vocab_size=GPT2_VOCAB_SIZE, d_model=768, n_layers=24, dropout=0.1
    ),
    "mamba2-tiny": ModelConfig(
        architecture="mamba2", d_model=128, n_layers=12, ssd=SSDConfig(head_dim=32, state=32, chunk=32)
    ),
    "mamba2-nano": ModelConfig(
        architecture="mamba2", d_model=32, n_layers=2, ssd=SSDConfig(head_dim=16, state=16, chunk=4)
    ),
    "gss-125m": ModelConfig(architecture="gss", vocab_size=GPT2_VOCAB_SIZE, d_model=768, n_layers=15, dropout=0.1),
    "gss-hybrid-125m": ModelConfig(
        architecture="gss-hybrid",
        vocab_size=GPT2_VOCAB_SIZE,
        d_model=768,
        n_layers=14,
        n_heads=12,
        n_kv_heads=12,
        ffn_main=8 / 3,
        attention=AttentionConfig(window=512),
        dropout=0.1,
    ),
    "gss-tiny": ModelConfig(architecture="gss", d_model=128, n_layers=9, mehta=MehtaConfig(state=64)),
    "gss-hybrid-tiny": ModelConfig(
        architecture="gss-hybrid",
        d_model=128,
        n_layers=9,
        n_heads=4,
        n_kv_heads=2,
        ffn_main=2.5,
        ffn_multiple_of=8,
        mehta=MehtaConfig(state=64),
    ),
    "gss-nano": ModelConfig(architecture="gss", d_model=32, n_layers=2, mehta=MehtaConfig(state=16, chunk=4)),
    "gss-hybrid-nano": ModelConfig(
        architecture="gss-hybrid",
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        ffn_multiple_of=8,
        mehta=MehtaConfig(state=16, chunk=4),
    ),
    "h3-125m": ModelConfig(
        architecture="h3", vocab_size=GPT2_VOCAB_SIZE, d_model=768, n_layers=12, ffn_main=8 / 3, dropout=0.1
    ),
    "h3-hybrid-125m": ModelConfig(
        architecture="h3-hybrid",
        vocab_size=GPT2_VOCAB_SIZE,
        d_model=768,
        n_layers=12,
        n_heads=12,
        n_kv_heads=12,
        ffn_main=8 / 3,
        dropout=0.1,
    ),
    "h3-tiny": ModelConfig(
        architecture="h3", d_model=128, n_layers=7, ffn_main=2.5, ffn_multiple_of=8, h3=H3Config(state=16, shift=32)
    ),
    "h3-hybrid-tiny": ModelConfig(
        architecture="h3-hybrid",
        d_model=128,
        n_layers=7,
        n_heads=4,
        n_kv_heads=2,
        ffn_main=2.5,
        ffn_multiple_of=8,
        h3=H3Config(state=16, shift=32),
    ),
    "h3-nano": ModelConfig(
        architecture="h3", d_model=32, n_layers=2, ffn_multiple_of=8, h3=H3Config(state=4, shift=6, chunk=4)
    ),
    "h3-hybrid-nano": ModelConfig(
        architecture="h3-hybrid",
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        ffn_multiple_of=8,
        h3=H3Config(state=4, shift=6, chunk=4),
    ),
    "hedgehog-125m": ModelConfig(
        architecture="hedgehog",
        vocab_size=GPT2_VOCAB_SIZE,
        d_model=768,
        n_layers=12,
        n_heads=12,
        n_kv_heads=4,
        ffn_main=3.0,
        dropout=0.1,
    ),
    "hedgehog-tiny": ModelConfig(
        architecture="hedgehog",
        d_model=128,
        n_layers=8,
        n_heads=4,
        n_kv_heads=2,
        ffn_main=2.5,
        ffn_multiple_of=8,
    ),
    "hedgehog-nano": ModelConfig(
        architecture="hedgehog",
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        ffn_multiple_of=8,
        hedgehog=HedgehogConfig(chunk=4),
    ),
    "taipan-190m": ModelConfig(
        architecture="taipan",
        vocab_size=GPT2_VOCAB_SIZE,
        d_model=768,
        n_layers=21,
        n_heads=12,
        n_kv_heads=4,
        ffn_main=2.125,
        dropout=0.1,
    ),
    "taipan-450m": ModelConfig(
        architecture="taipan",
        vocab_size=GPT2_VOCAB_SIZE,
        d_model=1024,
        n_layers=28,
        n_heads=16,
        n_kv_heads=4,
        ffn_main=8 / 3,
        dropout=0.1,
    ),
    "taipan-1.3b": ModelConfig(
        architecture="taipan",
        vocab_size=GPT2_VOCAB_SIZE,
        d_model=1792,
        n_layers=28,
        n_heads=28,
        n_kv_heads=7,
        ffn_main=8 / 3,
        dropout=0.1,
    ),
    "taipan-tiny": ModelConfig(
        architecture="taipan",
        d_model=128,
        n_layers=8,
        n_heads=4,
        n_kv_heads=2,
        ffn_main=1.5,
        ffn_multiple_of=8,
        ssd=SSDConfig(head_dim=32, state=32, chunk=32),
        taipan=TaipanConfig(every=3),
    ),
    "taipan-nano": ModelConfig(
        architecture="taipan",
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        ffn_multiple_of=8,
        ssd=SSDConfig(head_dim=16, state=16, chunk=4),
        taipan=TaipanConfig(every=1, window=16),
    ),
}
"""By architecture. `-nano` is for unit tests; `-tiny` has 1.9 million parameters at a vocabulary of 4,096, for
demonstrations on a laptop.

- `pha`: the paper's sizes (arXiv 2606.16093, Table 1, trained at 1,024 tokens).
- `transformer`: beside pha-125m (121.8M, 12 layers of 608) stand `-125m`, equal in layers and parameters; `-125m-deep`,
  equal in width and parameters, with twice the layers; and `-77m`, equal in layers and width.
- `mamba2`: the shape of the paper's 130M model (arXiv 2405.21060, Appendix D), whose vocabulary is another.
- `gss`: the proportions of the paper's layer (arXiv 2206.13947: narrow d / 4, wide 4 d, 512 states), in as many
  layers as 125M allow; the hybrid has a Transformer layer with a window of 512 in every fourth place.
- `h3`: the shape of the published 125M model (arXiv 2212.14052; the SwiGLU has the parameters of its 4 d MLP).
- `hedgehog`: `transformer-*` of the same size with feature maps, so that it can take up that one's weights.
- `taipan`: the paper gives totals alone (arXiv 2410.18572, Section 4.1), with a vocabulary of 128,256. The shapes are
  chosen here, with GPT-2's: `-190m` 18 blocks and 3 selective layers of 768 (190.1M); `-450m` 24 and 4 of 1,024
  (454.4M); `-1.3b` 24 and 4 of 1,792 (1,316M). Heads have 64 channels, 3 or 4 of them to a key head.
"""


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
