"""Initialisation: the rules that modules share. What is a module's own stands beside it, in `initialise`.

`pha`: matrices are Xavier-normal, the choice of DeepNet (arXiv 2203.00555), which also multiplies the value, output
and FFN matrices by beta = (8L)^(-1/4). In the branches a norm follows the output matrix, so that beta does not change
what a branch says at the start but how fast it turns (smaller weights turn faster under Adam); for the main FFN,
which has no norm after it, it keeps the first updates of the stream small.

Other architectures are pre-norm: normal matrices of variance 1 / (3 fan_in), which is torch's own variance for linear
maps and the usual 0.02 at a width of 768, and output matrices divided by the square root of the number of residual
additions (GPT-2; `mamba_ssm/models/mixer_seq_simple.py`), so that the stream does not grow with depth.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from model import architectures
from model.config import ModelConfig

Role = Literal["in", "value", "out"]
"""What a matrix does in its mixer: reads the stream, makes the values of an attention or FFN, writes to the stream."""


@runtime_checkable
class Initialised(Protocol):
    """A module that sets its own parameters and those of the `nn.Linear`s in it."""

    def initialise(self, config: ModelConfig) -> None:
        """Draw from torch's global random generator; gradients are off."""


def fill(weight: Tensor, config: ModelConfig, role: Role) -> None:
    """Fill one map [out, in] by the architecture's rule."""
    if config.architecture == "pha":
        gain = 1.0 if role == "in" else config.deepnorm_beta
        nn.init.normal_(weight, std=gain * math.sqrt(2.0 / (weight.shape[0] + weight.shape[1])))
        return
    gain = architectures.residual_count(config) ** -0.5 if role == "out" else 1.0
    nn.init.normal_(weight, std=gain / math.sqrt(3 * weight.shape[1]))


def embedding_std(config: ModelConfig) -> float:
    """Standard deviation of the tied embedding.

    The first loss should be ln V, that of a uniform guess. In `pha` a token's own vector survives the residual path
    to the last hidden state, whose size is 1 a channel, and the tied head then scores that token near std * d. With
    the usual d^(-1/2) this is sqrt(d), a confident bet on repeating the input; 1/d makes it 1. The other cure,
    d^(-1/2) with logits scaled down by sqrt(d), learns far more slowly, because the logits then grow by small steps
    only; after a few hundred steps 1/d is level with the unscaled d^(-1/2).

    The other architectures take the same rule with the same factor sqrt(d): the stream then begins at d^(-1/2), near
    what a first layer adds at any width. Without the factor it is the usual 0.02 (GPT-2, Mamba-2), which adds about
    0.0002 d nats to ln V, and which narrow models learn from slowly, because their first layers drown so small a
    token: after 250 steps at d = 32 a Transformer stood at 4.79 nats instead of 4.12, Mamba-2 at 4.01 instead of 3.95.
    """
    if config.embedding_init_std is not None:
        return config.embedding_init_std
    return 1.0 / config.d_model if config.embedding_scale == "sqrt" else 0.02


@torch.no_grad()
def initialise(module: nn.Module, config: ModelConfig) -> None:
    """Set every parameter of a language model from torch's global random generator."""
    for part in module.modules():
        if isinstance(part, Initialised):
            part.initialise(config)
