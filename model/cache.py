"""What a model must remember between calls while it generates or reads a long text in parts."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.errors import ModelError


class Memory:
    """What one mixer remembers. A call fills it in place."""

    @property
    def capacity(self) -> int | None:
        """Most tokens that it can follow; None is any number."""
        return None


@dataclass
class States(Memory):
    """Tensors of a fixed size, whatever the length: the states of recurrences and the last inputs of convolutions.

    Attributes:
        tensors: by name; rows first. States of recurrences are float32: half precision loses the slow channels.
    """

    tensors: dict[str, Tensor]


class KeyValueMemory(Memory):
    """Keys and values of the past, of all of it or of a window."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values [B, n_kv_heads, T, head_dim] of T tokens, normalised and rotated.

        Returns:
            The keys and the values that the last of these tokens may see, [B, n_kv_heads, S, head_dim]: in the order
            of the tokens where T > 1, in any order where T = 1.
        """
        raise NotImplementedError


@dataclass
class KeyValues(KeyValueMemory):
    """All keys and values so far.

    Attributes:
        keys: [B, n_kv_heads, max_length, head_dim]; the first `length` are filled.
        values: the same shape.
        length: tokens seen.
    """

    keys: Tensor
    values: Tensor
    length: int = 0

    @property
    def capacity(self) -> int | None:
        """Tokens that there is room for."""
        return self.keys.shape[2]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyValueMemory`; what comes back are views of the memory."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end].copy_(keys)
        self.values[:, :, self.length : end].copy_(values)
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass
class WindowKeyValues(KeyValueMemory):
    """The keys and values of the last `window` tokens: a ring, which stays as large as it is at any length.

    Attributes:
        keys: [B, n_kv_heads, window, head_dim]; token t lies at place t mod window.
        values: the same shape.
        seen: tokens seen.
    """

    keys: Tensor
    values: Tensor
    seen: int = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyValueMemory`. Before T > 1 tokens come at most `window` - 1 remembered ones."""
        window, length = self.keys.shape[2], keys.shape[2]
        if length == 1:
            place = self.seen % window
            self.keys[:, :, place].copy_(keys[:, :, 0])
            self.values[:, :, place].copy_(values[:, :, 0])
            self.seen += 1
            filled = min(self.seen, window)
            return self.keys[:, :, :filled], self.values[:, :, :filled]
        past = self._places(self.seen - min(self.seen, window - 1), self.seen)
        keys = torch.cat([self.keys[:, :, past], keys.to(self.keys.dtype)], dim=2)
        values = torch.cat([self.values[:, :, past], values.to(self.values.dtype)], dim=2)
        self.seen += length
        kept = self._places(max(0, self.seen - window), self.seen)
        self.keys[:, :, kept] = keys[:, :, -window:]
        self.values[:, :, kept] = values[:, :, -window:]
        return keys, values

    def _places(self, first: int, end: int) -> Tensor:
        return torch.arange(first, end, device=self.keys.device) % self.keys.shape[2]


@dataclass
class Cache:
    """The memory of a whole model: for each layer its mixers' memories, by the mixers' names.

    Attributes:
        layers: first to last; a mixer that remembers nothing is left out.
        batch: rows.
        position: tokens seen so far, which is the position of the next one.
    """

    layers: list[dict[str, Memory]]
    batch: int
    position: int = field(default=0)

    @property
    def capacity(self) -> int | None:
        """Most tokens that it can follow; None is any number."""
        limits = [m.capacity for layer in self.layers for m in layer.values() if m.capacity is not None]
        return min(limits, default=None)

    def require_room(self, batch: int, length: int) -> None:
        """Check, before anything is written, that `length` more tokens of `batch` rows fit.

        Raises:
            ModelError: the cache would overflow, or was made for another number of rows.
        """
        if self.batch != batch:
            raise ModelError(
                f"The cache was made for {self.batch} rows and got {batch}; make one with new_cache({batch}, ...)."
            )
        capacity = self.capacity
        if capacity is not None and self.position + length > capacity:
            raise ModelError(
                f"The cache holds {capacity} tokens and {self.position + length} are needed; make it longer "
                "with new_cache(batch, max_length)."
            )
