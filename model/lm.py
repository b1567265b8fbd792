"""The language model: embedding, blocks, final norm and tied head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.attention import rope_tables
from model.block import Block
from model.cache import Cache
from model.config import ModelConfig
from model.embedding import TiedEmbedding
from model.errors import ModelError
from model.init import initialise
from model.norm import RMSNorm
from model.params import require_vocab_size


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share an optimizer setting.

    Attributes:
        name: "decay" or "no_decay".
        parameters: pairs of the parameter's name in the model, and the parameter.
        decay: whether weight decay applies.
    """

    name: str
    parameters: list[tuple[str, nn.Parameter]]
    decay: bool


@dataclass(frozen=True)
class _Layout:
    """What the blocks need to know about the rows: rotary tables, attention mask, state resets."""

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    keep: Tensor | None


class LanguageModel(nn.Module):
    """A Parallel Hybrid Architecture language model (arXiv 2606.16093, Section 3).

    Args:
        config: the model; parameters are drawn from torch's global random generator.

    Raises:
        ModelError: `vocab_size` is None.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = TiedEmbedding(require_vocab_size(config), config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self._checkpoint: Callable[..., Tensor] | None = None
        self._recompute_every = 0
        initialise(self, config)

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
            float32 scalar, to be divided by the global number of labels.

        Raises:
            ModelError: shapes that do not fit, or a cache that is full or used with documents or with
                gradients.
        """
        self._check(tokens, documents, labels, cache)
        layout = self._layout(tokens, documents, cache)
        x = self.embedding(tokens)
        for index, block in enumerate(self.blocks):
            arguments = (x, layout.cos, layout.sin, layout.mask, layout.keep)
            if self._checkpoint is not None and self._recomputes(index) and cache is None:
                x = self._checkpoint(block, *arguments)
            else:
                x = block(*arguments, None if cache is None else cache.layers[index])
        hidden = self.norm(x)
        if labels is None:
            return self.embedding(hidden, "logits")
        return self.embedding(hidden, "loss", labels)

    @property
    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def set_recompute(self, checkpoint: Callable[..., Tensor], every: int) -> None:
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

    def parameter_groups(self) -> list[ParameterGroup]:
        """Split the parameters into those with and without weight decay; each is in exactly one group.

        Matrices decay. The embedding, gains, biases, decays of the recurrence, temperatures and mixing
        scalars do not: their zero is no neutral value (p toward 0 is uniform mixing; lambda toward 0 is a
        memory of one token).
        """
        decay: list[tuple[str, nn.Parameter]] = []
        no_decay: list[tuple[str, nn.Parameter]] = []
        for name, parameter in self.named_parameters():
            matrix = parameter.ndim >= 2 and not name.startswith("embedding.")
            (decay if matrix else no_decay).append((name, parameter))
        return [ParameterGroup("decay", decay, True), ParameterGroup("no_decay", no_decay, False)]

    def mixing_weights(self) -> Tensor:
        """The branches' weights in each layer [L, 3], float32, detached (arXiv 2606.16093, Table 9).

        The columns are in the order of `model.config.BRANCHES`.

        Raises:
            ModelError: the mixing scalars are sharded away and must be gathered first.
        """
        if any(block.mixing.p.numel() == 0 for block in self.layers):
            raise ModelError("The mixing scalars are sharded over ranks; gather them before reading them.")
        with torch.no_grad():
            return torch.stack([block.mixing() for block in self.layers])

    def new_cache(self, batch: int, max_length: int, dtype: torch.dtype = torch.float32) -> Cache:
        """An empty cache for `batch` rows of at most `max_length` tokens, on the model's device."""
        return Cache.empty(self.config, batch, max_length, dtype, self.embedding.weight.device)

    def _recomputes(self, index: int) -> bool:
        every = self._recompute_every
        return every > 0 and index % every == 0 and self.training and torch.is_grad_enabled()

    def _layout(self, tokens: Tensor, documents: Tensor | None, cache: Cache | None) -> _Layout:
        """Derive everything that depends on where documents and calls begin."""
        length, device = tokens.shape[1], tokens.device
        steps = torch.arange(length, device=device)
        mask = keep = None
        if documents is not None:
            starts = torch.ones_like(documents, dtype=torch.bool)
            starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
            segments = starts.cumsum(1)
            positions = steps - torch.where(starts, steps, 0).cummax(1).values
            causal = steps[:, None] >= steps
            mask = ((segments[:, :, None] == segments[:, None, :]) & causal)[:, None]
            keep = (~starts)[:, :, None].to(torch.float32)
        else:
            before = 0 if cache is None else cache.position
            positions = (steps + before)[None]
            if before > 0 and length > 1:
                mask = (torch.arange(before + length, device=device) <= positions[0, :, None])[None, None]
        return _Layout(*rope_tables(positions, self.config.head_dim, self.config.rope_theta), mask, keep)

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
