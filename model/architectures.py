"""What layers an architecture is made of. It does not import torch, so that counts and configs can read it too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # the configuration checks itself with the tables below
    from model.config import ModelConfig

Name = Literal["pha", "transformer", "mamba2", "gss", "gss-hybrid", "h3", "h3-hybrid", "hedgehog", "taipan"]
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


TRANSFORMER = Layer(("attention", "ffn_main"))
"""Pre-norm attention and SwiGLU."""


def _transformer(config: ModelConfig) -> tuple[Layer, ...]:
    """The usual baseline (arXiv 2302.13971, Section 2.2)."""
    return (TRANSFORMER,) * config.n_layers


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


def _gss(config: ModelConfig) -> tuple[Layer, ...]:
    """Gated state spaces alone (arXiv 2206.13947, Section 3.2): the wide gated stream is their FFN."""
    return (Layer(("mehta",)),) * config.n_layers


def _gss_hybrid(config: ModelConfig) -> tuple[Layer, ...]:
    """A Transformer layer in the place of every k-th gated state space (arXiv 2206.13947, Section 3.3)."""
    every = min(config.mehta.attention_every, config.n_layers)
    gss = Layer(("mehta",))
    return tuple(gss if number % every else TRANSFORMER for number in range(1, config.n_layers + 1))


def _h3(config: ModelConfig) -> tuple[Layer, ...]:
    """An FFN after each H3 mixer, as in the published models (`SSMLMHeadModel` of HazyResearch/H3)."""
    return (Layer(("h3", "ffn_main")),) * config.n_layers


def _h3_hybrid(config: ModelConfig) -> tuple[Layer, ...]:
    """Attention in the place of the H3 mixer at chosen layers (arXiv 2212.14052, Section 3.3)."""
    h3, chosen = Layer(("h3", "ffn_main")), config.h3.attention_layers
    if chosen is None:
        chosen = (config.n_layers // 2,)
    return tuple(TRANSFORMER if index in chosen else h3 for index in range(config.n_layers))


def _hedgehog(config: ModelConfig) -> tuple[Layer, ...]:
    """The Transformer with linear attention under learned features (arXiv 2402.04347)."""
    return (Layer(("hedgehog", "ffn_main")),) * config.n_layers


ARCHITECTURES: dict[Name, Callable[[ModelConfig], tuple[Layer, ...]]] = {
    "pha": _pha,
    "transformer": _transformer,
    "mamba2": _mamba2,
    "taipan": _taipan,
    "gss": _gss,
    "gss-hybrid": _gss_hybrid,
    "h3": _h3,
    "h3-hybrid": _h3_hybrid,
    "hedgehog": _hedgehog,
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
