"""What a model must remember between calls while it generates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig
from model.errors import ModelError


@dataclass
class LayerCache:
    """One block's memory: keys and values of the past, and the recurrent state.

    Attributes:
        keys: normalised and rotated keys [B, n_kv_heads, max_length, head_dim]; the first `length` are
            filled.
        values: the same shape.
        state: recurrent state [B, H], float32: half precision loses the slow channels.
        length: tokens seen.
    """

    keys: Tensor
    values: Tensor
    state: Tensor
    length: int = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values [B, n_kv_heads, T, head_dim] of T tokens.

        Returns:
            Views of all keys and all values so far [B, n_kv_heads, length, head_dim].
        """
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end].copy_(keys)
        self.values[:, :, self.length : end].copy_(values)
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass
class Cache:
    """The memory of a whole model, one `LayerCache` a block. A call of the model fills it in place."""

    layers: list[LayerCache]

    @property
    def position(self) -> int:
        """Tokens seen so far, which is the position of the next one."""
        return self.layers[0].length

    def require_room(self, batch: int, length: int) -> None:
        """Check, before anything is written, that `length` more tokens of `batch` rows fit.

        Raises:
            ModelError: the cache would overflow, or was made for another number of rows.
        """
        rows, _, capacity, _ = self.layers[0].keys.shape
        if rows != batch:
            raise ModelError(
                f"The cache was made for {rows} rows and got {batch}; make one with new_cache({batch}, ...)."
            )
        if self.position + length > capacity:
            raise ModelError(
                f"The cache holds {capacity} tokens and {self.position + length} are needed; make it longer "
                "with new_cache(batch, max_length)."
            )

    @classmethod
    def empty(cls, config: ModelConfig, batch: int, max_length: int, dtype: torch.dtype, device: torch.device) -> Cache:
        """An empty cache for `batch` rows of at most `max_length` tokens; `dtype` is for keys and values."""
        shape = (batch, config.n_kv_heads, max_length, config.head_dim)
        return cls(
            [
                LayerCache(
                    keys=torch.zeros(shape, dtype=dtype, device=device),
                    values=torch.zeros(shape, dtype=dtype, device=device),
                    state=torch.zeros(batch, config.gss_size, dtype=torch.float32, device=device),
                )
                for _ in range(config.n_layers)
            ]
        )
