"""What a chain of PyTorch operations moves: each one reads its inputs and writes its outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class ChainTraffic(TorchDispatchMode):
    """Counts `total` bytes of all operations inside that are not views; a broadcast input counts as it is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs, outputs = _storages((args, kwargs)), _storages(result)
        if not (set(outputs) <= set(inputs) and not func._schema.is_mutable):  # a view moves nothing
            self.total += sum(inputs.values()) + sum(outputs.values())
        return result


def _storages(tree: Any) -> dict[int, int]:
    """The bytes of each tensor's own numbers, by its address."""
    found: dict[int, int] = {}
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            distinct = [size for size, stride in zip(leaf.shape, leaf.stride(), strict=True) if stride]
            found[
                id(leaf.untyped_storage()._cdata) if leaf.device.type == "meta" else leaf.untyped_storage().data_ptr()
            ] = int(torch.tensor(distinct or [1]).prod()) * leaf.element_size()
    return found
