"""An account of memory: who holds how many bytes, at every moment of a step that is run on tensors without data."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Holding:
    """Bytes that are held by name and not by a tensor; `grow` and `free` change the account."""

    def __init__(self, ledger: Ledger, kind: str, size: int = 0) -> None:
        self._ledger, self._kind, self.size = ledger, kind, 0
        self.grow(size)

    def grow(self, size: int) -> None:
        """Holds so many bytes more."""
        self.size += size
        self._ledger.add(self._kind, size)

    def free(self) -> None:
        """Gives all of it back."""
        self._ledger.add(self._kind, -self.size)
        self.size = 0


class Ledger(TorchDispatchMode):
    """While it is entered, each storage that an operation makes is counted from its making to its end.

    Storages are counted once, however many tensors look at them. What an operation needs inside itself is not seen.

    Attributes:
        kind: what a new storage is counted as.
        phase: the moment of the run, in words.
        parts: kind → bytes held now.
        total: their sum.
        most: kind → the most bytes that it ever held, at whatever moment.
        operations: how many there were that compute.
        moved: bytes that they read and wrote, if nothing stays in a cache between two of them.
        peaks: phase → the largest sum in it, and the parts of that moment.
    """

    def __init__(self, number: int | None = None, nonzero: int | None = None) -> None:
        """What a model is told that asks for data: a number in a tensor, and how many numbers of one are not zero.

        Where None is given, PyTorch raises its error of fake tensors.
        """
        super().__init__()
        self.number, self.nonzero = number, nonzero
        self.operations, self.moved = 0, 0
        self.kind, self.phase = "activations", "start"
        self.parts: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.total = 0
        self.peaks: dict[str, tuple[int, dict[str, int]]] = {}
        self._live: dict[int, tuple[str, int, Any]] = {}  # storage → kind, bytes, and the reference that tells its end

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operation and counts what it has made."""
        if func is torch.ops.aten._local_scalar_dense.default and self.number is not None:
            return self.number
        if func is torch.ops.aten.nonzero.default and self.nonzero is not None:
            result = args[0].new_empty((self.nonzero, args[0].ndim), dtype=torch.int64)
        else:
            result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        if not func.is_view and func.namespace == "aten":
            self.count((*tree_leaves((args, kwargs)), *tree_leaves(result)))
        return result

    def count(self, tensors: Iterable[Any]) -> None:
        """Counts an operation that reads or writes these tensors once."""
        self.operations += 1
        self.moved += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))

    @property
    def peak(self) -> tuple[str, int, dict[str, int]]:
        """The phase with the largest sum of all, that sum, and its parts."""
        phase = max(self.peaks, key=lambda name: self.peaks[name][0])
        return phase, *self.peaks[phase]

    def add(self, kind: str, size: int) -> None:
        """Counts so many bytes more (or less) of a kind."""
        self.parts[kind] += size
        self.total += size
        self.most[kind] = max(self.most[kind], self.parts[kind])
        if size > 0 and self.total > self.peaks.get(self.phase, (-1, {}))[0]:
            self.peaks[self.phase] = self.total, {name: held for name, held in self.parts.items() if held}

    @contextlib.contextmanager
    def counting(self, kind: str) -> Iterator[None]:
        """Inside, what is made is of this kind."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    @contextlib.contextmanager
    def transient(self, kind: str, size: int) -> Iterator[None]:
        """Inside, so many bytes more are held."""
        holding = Holding(self, kind, size)
        yield
        holding.free()

    def move(self, tensor: Tensor, kind: str) -> None:
        """Counts a tensor's storage as another kind from now on."""
        key = tensor.untyped_storage()._cdata
        if key in self._live:
            old, size, reference = self._live[key]
            self._live[key] = kind, size, reference
            self.parts[old] -= size
            self.parts[kind] += size
            self.most[kind] = max(self.most[kind], self.parts[kind])

    def resize(self, tensor: Tensor, size: int) -> None:
        """Counts a tensor's storage with so many bytes from now on: 0 where its data is elsewhere."""
        key = tensor.untyped_storage()._cdata
        if key in self._live:
            kind, old, reference = self._live[key]
            self._live[key] = kind, size, reference
            self.add(kind, size - old)

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        reference = weakref.ref(storage, lambda _: self._end(key))
        self._live[key] = self.kind, storage.nbytes(), reference
        self.add(self.kind, storage.nbytes())

    def _end(self, key: int) -> None:
        kind, size, _ = self._live.pop(key)
        self.add(kind, -size)
