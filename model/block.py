"""How the mixers of one layer are put together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.architectures import Layer
from model.attention import Attention
from model.cache import Memory
from model.config import ModelConfig
from model.ffn import SwiGLU
from model.fusion import fuse
from model.gss import GatedStateSpace
from model.h3 import H3
from model.hedgehog_attention import HedgehogAttention
from model.mamba2 import Mamba2
from model.mehta import MehtaGSS
from model.mixer import Mixer
from model.mixing import Mixing
from model.norm import RMSNorm
from model.packed import PackedLinear
from model.rows import Rows
from model.taipan import SelectiveAttention

GSS_KINDS: dict[str, Callable[[ModelConfig], Mixer]] = {"gated": GatedStateSpace, "ssd": Mamba2, "mehta": MehtaGSS}
"""What `gss.kind` chooses among."""

MIXERS: dict[str, Callable[[ModelConfig], Mixer]] = {
    "attention": Attention,
    "gss": lambda config: GSS_KINDS[config.gss.kind](config),
    "ssd": Mamba2,
    "selective": SelectiveAttention,
    "mehta": MehtaGSS,
    "h3": H3,
    "hedgehog": HedgehogAttention,
    "ffn_aux": lambda config: SwiGLU(config.d_model, config.ffn_aux_size),
    "ffn_main": lambda config: SwiGLU(config.d_model, config.ffn_main_size),
}
"""How a layer's parts are made; the names are those of `model.architectures`."""


class Block(nn.Module):
    """One layer. Its mixers are attributes called by their names in `parts`."""

    def __init__(self, config: ModelConfig, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.parts = parts
        self.dropout = nn.Dropout(config.dropout) if config.dropout > 0 else nn.Identity()

    def forward(
        self, x: Tensor, *rows: Tensor | None, memory: dict[str, Memory] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Map the stream x [B, T, d_model] to the next one.

        `rows` are the fields of `Rows`: tensors or None, and positional, as activation checkpointing wants. A block
        that selects tokens gives their `Selection.weight` [B, T] too, by which the budget loss is made.
        """
        raise NotImplementedError

    def empty_memory(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device) -> dict[str, Memory]:
        """What the layer's mixers remember, by their names; see `Mixer.empty_memory`."""
        made = {part: self._mixer(part).empty_memory(batch, max_length, dtype, device) for part in self.parts}
        return {part: memory for part, memory in made.items() if memory is not None}

    def _mixer(self, part: str) -> Mixer:
        mixer = getattr(self, part)
        assert isinstance(mixer, Mixer)
        return mixer


class ParallelBlock(Block):
    """The layer of the Parallel Hybrid Architecture (arXiv 2606.16093, Figure 1, Eq. 3 and 4).

        x^ = RMSNorm(x)                                     one norm for all branches, and one product (`pack`)
        y  = sum_k w_k RMSNorm_k(branch_k(x^))              GSS, attention, auxiliary SwiGLU
        x' = alpha x + y                                    DeepNorm residual, alpha = (2L)^(1/4)
        h  = RMSNorm(x')
        out = alpha h + SwiGLU(h)                           `main_residual` "normed"

    Figure 1 draws no path around the main FFN. Three readings are offered:

    - "normed" (default) is DeepNorm's own post-norm order, whose residual starts *after* the norm. The stream
      leaves each block with size near alpha, so every layer writes into a stream of the same size.
    - "raw", out = alpha x' + SwiGLU(h), is pre-norm with DeepNorm's factor. The stream grows by alpha twice a
      layer, alpha^(2L) in all (7e8 at L = 14), while what a branch adds stays near 1: the layers after the
      first few can hardly change the output.
    - "none", out = SwiGLU(h), is Figure 1 taken literally; gradients then reach a layer only through every
      FFN above.

    Dropout falls on each normalised branch output and on the main FFN's output. Branches may be missing (Table 7);
    the main FFN stays.
    """

    def __init__(self, config: ModelConfig, parts: tuple[str, ...]) -> None:
        super().__init__(config, parts)
        size, eps = config.d_model, config.norm_eps
        self.alpha = config.deepnorm_alpha
        self.main_residual = config.main_residual
        self.norm = RMSNorm(size, eps)
        for part in parts:
            self.add_module(part, MIXERS[part](config))
        for part in parts:
            self.add_module(_norm_of(part), RMSNorm(size, eps))
        self.mixing = Mixing(config)
        self.norm_main = RMSNorm(size, eps)
        self.ffn_main = SwiGLU(size, config.ffn_main_size)
        self.packed: tuple[str, ...] = ()
        self.in_proj: PackedLinear | None = None
        self.watching = False
        self.branch_rms: Tensor | None = None
        """Root mean square of each branch's output [n], detached, of the last call while `watching`."""

    def pack(self) -> None:
        """Join the branches' maps of the normed stream into one matrix, where two or more have such a map.

        They are joined after they have been initialised, so that a seed gives the same model whether packed or not.
        """
        readers = tuple(part for part in self.parts if self._mixer(part).input_map is not None)
        if len(readers) > 1:
            maps = [self._mixer(part).release_input_map() for part in readers]
            self.packed, self.in_proj = readers, PackedLinear([one for one in maps if one is not None])

    def forward(self, x: Tensor, *rows: Tensor | None, memory: dict[str, Memory] | None = None) -> Tensor:
        """See `Block`."""
        known, memories = Rows(*rows), memory or {}
        normed = self.norm(x)
        weights = self.mixing(normed)
        read = {} if self.in_proj is None else dict(zip(self.packed, self.in_proj(normed), strict=True))
        outs = [self._mixer(part)(read.get(part, normed), known, memories.get(part)) for part in self.parts]
        if self.watching:
            self.branch_rms = torch.stack([out.detach().float().square().mean().sqrt() for out in outs])
        hidden, stream = self._fuse(outs, weights, x)
        out = self.dropout(self.ffn_main(hidden))
        if self.main_residual == "none":
            return out
        return out.add(hidden if stream is None else stream, alpha=self.alpha)

    def _fuse(self, outs: list[Tensor], weights: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The normed stream for the main FFN, and the stream itself where its residual starts from it."""
        norms = [getattr(self, _norm_of(part)) for part in self.parts]
        raw = self.main_residual == "raw"
        if weights.ndim < 3:  # all tokens have one weight: it goes with the gain
            gains = torch.stack([norm(None, scale=weight) for norm, weight in zip(norms, weights, strict=True)])
            dropout = self.dropout.p if isinstance(self.dropout, nn.Dropout) and self.training else 0.0
            return fuse(outs, gains, x, self.norm_main(None), self.alpha, self.norm_main.eps, dropout, raw)
        stream = self.alpha * x
        for norm, out, weight in zip(norms, outs, weights, strict=True):
            stream = stream + self.dropout(norm(out) * weight.to(out.dtype))
        return self.norm_main(stream), stream if raw else None


class SequentialBlock(Block):
    """Pre-norm residual parts one after another, x <- x + part(RMSNorm(x)).

    With attention and an FFN this is the usual Transformer layer; with an SSD mixer alone, that of Mamba-2; with
    attention, GSS and an FFN, the sequential comparison of arXiv 2606.16093, Table 6 ("each with residual"; no
    DeepNorm factor is named there, and none is used). Dropout falls on each part's output.
    """

    def __init__(self, config: ModelConfig, parts: tuple[str, ...]) -> None:
        super().__init__(config, parts)
        for part in parts:
            self.add_module(_norm_of(part), RMSNorm(config.d_model, config.norm_eps))
            self.add_module(part, MIXERS[part](config))

    def forward(
        self, x: Tensor, *rows: Tensor | None, memory: dict[str, Memory] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """See `Block`."""
        known, memories = Rows(*rows), memory or {}
        added: Tensor | None = None
        for part in self.parts:
            norm = getattr(self, _norm_of(part))
            if added is None:
                normed = norm(x)
            else:
                normed, x = norm(x, added)
            added = self.dropout(self._mixer(part)(normed, known, memories.get(part)))
        assert added is not None
        return x + added


class SelectiveBlock(SequentialBlock):
    """The Selective Attention Layer of Taipan (arXiv 2410.18572, Eq. 1 to 6): a choice, and a SwiGLU for all tokens.

    The mixer reads the normed stream and refines the stream itself, of which it therefore gets both. Dropout falls on
    the refinement and on the FFN's output.
    """

    def forward(
        self, x: Tensor, *rows: Tensor | None, memory: dict[str, Memory] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Block`."""
        selective, normed = self._mixer("selective"), getattr(self, _norm_of("selective"))(x)
        refinement, chosen = selective(normed, Rows(*rows), (memory or {}).get("selective"), x)
        x = x + self.dropout(refinement)
        return x + self.dropout(self._mixer("ffn_main")(getattr(self, _norm_of("ffn_main"))(x))), chosen


def _norm_of(part: str) -> str:
    """The name of a part's norm; the FFN's does not say which FFN."""
    return "norm_" + part.removesuffix("_aux").removesuffix("_main")


def build_block(config: ModelConfig, layer: Layer) -> Block:
    """The block of one layer of `model.architectures.layers`."""
    if "selective" in layer.parts:
        return SelectiveBlock(config, layer.parts)
    return (ParallelBlock if layer.parallel else SequentialBlock)(config, layer.parts)
