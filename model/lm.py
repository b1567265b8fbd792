"""The language model: embedding, blocks, final norm and tied head."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from model import architectures
from model.block import Block, ParallelBlock, SelectiveBlock, build_block
from model.budget import Budget
from model.cache import Cache
from model.config import ModelConfig
from model.embedding import TiedEmbedding
from model.errors import ModelError
from model.groups import ParameterGroup, parameter_groups
from model.init import initialise
from model.norm import RMSNorm
from model.params import require_vocab_size
from model.rows import describe_rows
from model.taipan import SelectiveAttention


class LanguageModel(nn.Module):
    """A language model of any architecture: what differs between them is in `blocks`.

    Args:
        config: the model; parameters are drawn from torch's global random generator.

    Raises:
        ModelError: `vocab_size` is None.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        scale = math.sqrt(config.d_model) if config.embedding_scale == "sqrt" else 1.0
        self.embedding = TiedEmbedding(require_vocab_size(config), config.d_model, scale)
        self.blocks = nn.ModuleList(build_block(config, layer) for layer in architectures.layers(config))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        selective = sum(isinstance(block, SelectiveBlock) for block in self.blocks)
        self.budget = Budget(config.taipan, selective) if selective else None
        self._checkpoint: Callable[..., Any] | None = None
        self._recompute_every = 0
        self._compiled: list[Callable[..., Any]] = []
        initialise(self, config)
        if config.in_projections == "packed":
            for block in self.blocks:
                if isinstance(block, ParallelBlock):
                    block.pack()

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        labels: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Score the next token at every position.

        Args:
            tokens: int64 [B, T].
            documents: integers [B, T], not decreasing along a row, one number a document; positions restart,
                attention and state end at each change. None means that each row is one document.
            labels: int64 [B, T], the token to predict at each place, or -100 where none counts.
            cache: memory of the tokens before these, filled in place; for inference, without documents.

        Returns:
            Logits [B, T, V], float32; with labels, the sum (not the mean) of the cross-entropies in nats, a
            float32 scalar, to be divided by the global number of labels. In training its gradient is also that of
            what the architecture owes beside the prediction (`model.budget`), summed over the labels likewise; its
            value never has more in it than the cross-entropies.

        Raises:
            ModelError: shapes that do not fit, or a cache that is full or used with documents or with
                gradients.
        """
        self._check(tokens, documents, labels, cache)
        rows = describe_rows(self.config, tokens, documents, 0 if cache is None else cache.position)
        x = self.embedding(tokens)
        chosen: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if cache is not None:
                out = block(x, *rows, memory=cache.layers[index])
            elif self._checkpoint is not None and self._recomputes(index):
                out = self._checkpoint(self._trained(index), x, *rows)
            else:
                out = self._trained(index)(x, *rows)
            x = out if isinstance(out, Tensor) else out[0]
            chosen += [] if isinstance(out, Tensor) else [out[1]]
        if cache is not None:
            cache.position += tokens.shape[1]
        hidden = self.norm(x)
        if labels is None:
            return self.embedding(hidden, "logits")
        return self._with_budget(self.embedding(hidden, "loss", labels), chosen, labels)

    @property
    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def set_recompute(self, checkpoint: Callable[..., Any], every: int) -> None:
        """Recompute the activations of blocks 0, every, 2 * every, ... in the backward pass of training.

        Args:
            checkpoint: called as `checkpoint(block, *tensors_or_None)`, for example
                `functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)`.
            every: 1 recomputes all blocks, 0 none.

        Raises:
            ModelError: `every` is negative.
        """
        if every < 0:
            raise ModelError(f"Recomputation every {every} blocks makes no sense; give 0 (never) or more.")
        self._checkpoint = checkpoint
        self._recompute_every = every

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Have torch.compile make the blocks' training steps, at the first; names and all other calls stay.

        Operations are compiled from their definitions: neither Triton kernels nor written-out backward passes are used.
        """
        self._compiled = [torch.compile(block, dynamic=False, backend=backend) for block in self.blocks]

    def begin_step(self, step: int) -> None:
        """Take note that the training step `step`, counted from 0, begins.

        What an architecture owes beside the prediction, and how much it leaves to chance, are functions of the step.
        """
        if self.budget is None:
            return
        self.budget.step = step
        self.budget.reading()  # what was read since the last step is none of this one's
        for module in self.modules():
            if isinstance(module, SelectiveAttention):
                module.noise = self.config.taipan.noise_at(step)

    def parameter_groups(self) -> list[ParameterGroup]:
        """The parameters with and without weight decay; `model.groups` has the rule."""
        return parameter_groups(self)

    def mixing_weights(self) -> Tensor:
        """The branches' weights in each layer [L, n], float32, detached (arXiv 2606.16093, Table 9).

        The columns are in the order of `ModelConfig.mixed_branches`; [0, 0] where the architecture mixes nothing.

        Raises:
            ModelError: the mixing scalars are sharded away and must be gathered first.
        """
        if not self.config.mixed_branches:
            return torch.empty(0, 0)
        return torch.stack([block.mixing.average() for block in self.layers if isinstance(block, ParallelBlock)])

    def watch_branches(self, watching: bool) -> None:
        """Whether the coming calls take note of how large the branches' outputs are, before their norms."""
        for block in self.layers:
            if isinstance(block, ParallelBlock):
                block.watching = watching

    def branch_rms(self) -> Tensor:
        """Root mean squares of the branches' outputs in each layer [L, n], float32, of the last watched call.

        The columns are as those of `mixing_weights`; [0, 0] where nothing was watched.
        """
        found = [block.branch_rms for block in self.layers if isinstance(block, ParallelBlock)]
        known = [rms for rms in found if rms is not None]
        return torch.stack(known) if known and len(known) == len(found) else torch.empty(0, 0)

    def new_cache(self, batch: int, max_length: int, dtype: torch.dtype = torch.float32) -> Cache:
        """An empty cache for `batch` rows of at most `max_length` tokens, on the model's device.

        `dtype` is for keys and values. Where the attention has a window, or there is none, any length fits.
        """
        device = self.embedding.weight.device
        return Cache([block.empty_memory(batch, max_length, dtype, device) for block in self.layers], batch)

    def _with_budget(self, loss: Tensor, chosen: list[Tensor], labels: Tensor) -> Tensor:
        """The loss, with the gradient of the budget loss in training."""
        if self.budget is None:
            return loss
        self.budget.count(chosen, labels)
        if not (self.training and torch.is_grad_enabled()):
            return loss
        owed = self.budget.loss(chosen, labels)
        return loss + (owed - owed.detach())  # adds 0

    def _trained(self, index: int) -> Callable[..., Any]:
        """The block, compiled where it is trained and compilation is wanted."""
        compiled = bool(self._compiled) and self.training and torch.is_grad_enabled()
        return self._compiled[index] if compiled else self.blocks[index]

    def _recomputes(self, index: int) -> bool:
        every = self._recompute_every
        return every > 0 and index % every == 0 and self.training and torch.is_grad_enabled()

    def _check(self, tokens: Tensor, documents: Tensor | None, labels: Tensor | None, cache: Cache | None) -> None:
        """Raise ModelError where the arguments do not fit together."""
        if tokens.ndim != 2 or tokens.shape[1] == 0 or tokens.dtype != torch.int64:
            raise ModelError(
                f"Tokens are {tokens.dtype} of shape {list(tokens.shape)}; give torch.int64 of shape "
                "[rows, tokens] with at least one token a row."
            )
        for name, other in (("Documents", documents), ("Labels", labels)):
            if other is not None and other.shape != tokens.shape:
                raise ModelError(
                    f"{name} have shape {list(other.shape)} and tokens {list(tokens.shape)}; give one for each token."
                )
        if cache is not None and documents is not None:
            raise ModelError("A cache follows one document a row; pass either documents or a cache, not both.")
        if cache is not None and torch.is_grad_enabled():
            raise ModelError("A cache is filled in place and has no gradients; use it under torch.no_grad().")
        if cache is not None:
            cache.require_room(*tokens.shape)
