"""All initialisation, in one place.

Matrices are Xavier-normal, the choice of DeepNet (arXiv 2203.00555), which also multiplies the value, output
and FFN matrices by beta = (8L)^(-1/4). In the branches a norm follows the output matrix, so that beta does
not change what a branch says at the start but how fast it turns (smaller weights turn faster under Adam); for
the main FFN, which has no norm after it, it keeps the first updates of the stream small.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.attention import Attention
from model.block import Block
from model.config import ModelConfig
from model.embedding import TiedEmbedding
from model.ffn import SwiGLU
from model.gss import GatedStateSpace
from model.norm import RMSNorm


def _xavier(weight: Tensor, gain: float = 1.0) -> None:
    """Fill one map [out, in] with a normal of variance 2 gain^2 / (in + out)."""
    nn.init.normal_(weight, std=gain * math.sqrt(2.0 / (weight.shape[0] + weight.shape[1])))


def embedding_std(config: ModelConfig) -> float:
    """Standard deviation of the tied embedding.

    The first loss should be ln V, that of a uniform guess. A token's own vector survives the residual path to
    the last hidden state, whose size is 1 a channel, and the tied head then scores that token near std * d.
    With the usual d^(-1/2) this is sqrt(d), a confident bet on repeating the input; 1/d makes it 1. The other
    cure, d^(-1/2) with logits scaled down by sqrt(d), learns far more slowly, because the logits then grow by
    small steps only; after a few hundred steps 1/d is level with the unscaled d^(-1/2).
    """
    return 1.0 / config.d_model if config.embedding_init_std is None else config.embedding_init_std


def _init_attention(module: Attention, config: ModelConfig) -> None:
    queries, keys, values = module.qkv.weight.split(
        [module.heads * module.head_dim, module.kv_heads * module.head_dim, module.kv_heads * module.head_dim]
    )
    _xavier(queries)
    _xavier(keys)
    _xavier(values, config.deepnorm_beta)
    _xavier(module.out.weight, config.deepnorm_beta)
    nn.init.constant_(module.log_scale, math.log(config.cosine_scale_init))


def _init_ffn(module: SwiGLU, config: ModelConfig) -> None:
    for weight in module.gate_up.weight.chunk(2):
        _xavier(weight, config.deepnorm_beta)
    _xavier(module.down.weight, config.deepnorm_beta)


def timescales(config: ModelConfig) -> Tensor:
    """Memory of each state channel at initialisation [H], in tokens, log-uniform, float64."""
    low, high = math.log(config.gss.timescale_min), math.log(config.gss.timescale_max)
    return torch.linspace(low, high, config.gss_size, dtype=torch.float64).exp()


def _init_gss(module: GatedStateSpace, config: ModelConfig) -> None:
    """Give channel c the decay a = exp(-1 / timescale_c) at W_g x = 0.

    With a zero bias the gate of Eq. 2 is 1/2 and every channel forgets within two tokens, whatever A is. With
    a learned A the gate and A take half of log a each.
    """
    for weight in module.in_proj.weight.chunk(3):
        _xavier(weight)
    _xavier(module.out_proj.weight, config.deepnorm_beta)
    rate = 1.0 / timescales(config)
    if module.decay is not None:
        rate = rate / 2
        module.decay.copy_(torch.log(torch.expm1(rate)))  # softplus(decay) = rate
    module.gate_bias.copy_(-torch.log(torch.expm1(rate)))  # sigmoid(bias) = exp(-rate)


@torch.no_grad()
def initialise(module: nn.Module, config: ModelConfig) -> None:
    """Set every parameter of a language model from torch's global random generator.

    Mixing scalars start at 0, so that the branches start at 1/3 each; gains start at 1.
    """
    for part in module.modules():
        if isinstance(part, TiedEmbedding):
            nn.init.normal_(part.weight, std=embedding_std(config))
        elif isinstance(part, RMSNorm):
            nn.init.ones_(part.weight)
        elif isinstance(part, Attention):
            _init_attention(part, config)
        elif isinstance(part, GatedStateSpace):
            _init_gss(part, config)
        elif isinstance(part, SwiGLU):
            _init_ffn(part, config)
        elif isinstance(part, Block):
            nn.init.zeros_(part.mixing.p)
