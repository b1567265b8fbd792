"""What layers an architecture is made of. It does not import torch, so that counts and configs can read it too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # the configuration checks itself with the tables below
    from model.config import ModelConfig

Name = Literal["pha", "transformer", "mamba2", "taipan"]
"""The architectures that `model.architecture` may name."""


class Layer(NamedTuple):
    """One layer.

    Attributes:
        parts: the layer's mixers in order, by the names that the registries of `model.block`, `model.params` and
            `model.flops` know. A part's name is also its name among the weights.
        parallel: the parts read one norm side by side and are mixed, and the main FFN follows (PHA); otherwise each
            part has a norm and a residual path of its own and follows the one before.
    """

    parts: tuple[str, ...]
    parallel: bool = False


def _pha(config: ModelConfig) -> tuple[Layer, ...]:
    """Figure 1 of arXiv 2606.16093, or its sequential comparison (Table 6), less the branches taken away (Table 7)."""
    if config.composition == "sequential":
        order = {"attention": "attention", "gss": "gss", "ffn": "ffn_main"}
    else:
        order = {"gss": "gss", "attention": "attention", "ffn": "ffn_aux"}
    parts = tuple(part for branch, part in order.items() if branch in config.branches)
    return (Layer(parts, parallel=config.composition == "parallel"),) * config.n_layers


def _transformer(config: ModelConfig) -> tuple[Layer, ...]:
    """Pre-norm attention and SwiGLU, the usual baseline (arXiv 2302.13971, Section 2.2)."""
    return (Layer(("attention", "ffn_main")),) * config.n_layers


def _mamba2(config: ModelConfig) -> tuple[Layer, ...]:
    """Mamba-2 mixers alone (arXiv 2405.21060, Section 7): the block's gate is its FFN."""
    return (Layer(("ssd",)),) * config.n_layers


def _taipan(config: ModelConfig) -> tuple[Layer, ...]:
    """Mamba-2 blocks, and selective attention with a SwiGLU after every K of them (arXiv 2410.18572, Section 3).

    In a model with less than K + 1 layers the last one is selective.
    """
    block = Layer(("ssd", "ffn_main") if config.taipan.block_ffn else ("ssd",))
    period = min(config.taipan.every + 1, config.n_layers)
    return tuple(Layer(("selective", "ffn_main")) if n % period == 0 else block for n in range(1, config.n_layers + 1))


ARCHITECTURES: dict[Name, Callable[[ModelConfig], tuple[Layer, ...]]] = {
    "pha": _pha,
    "transformer": _transformer,
    "mamba2": _mamba2,
    "taipan": _taipan,
}


def layers(config: ModelConfig) -> tuple[Layer, ...]:
    """The model's layers, first to last."""
    return ARCHITECTURES[config.architecture](config)


def parts(config: ModelConfig) -> frozenset[str]:
    """The names of all mixers that the model has."""
    return frozenset(part for layer in layers(config) for part in layer.parts)


def residual_count(config: ModelConfig) -> int:
    """How often something is added to the residual stream."""
    return sum(2 if layer.parallel else len(layer.parts) for layer in layers(config))
