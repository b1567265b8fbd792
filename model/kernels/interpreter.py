"""Triton's interpreter, watched: how many bytes kernels read and write; and its scans, fast enough for tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


@dataclass
class Traffic:
    """Bytes that kernels asked the memory for, masked elements left out.

    Attributes:
        read: by loads.
        written: by stores.
    """

    read: int = 0
    written: int = 0

    @property
    def total(self) -> int:
        """Both."""
        return self.read + self.written


@contextlib.contextmanager
def counted() -> Iterator[Traffic]:
    """Inside, loads and stores of kernels are counted, each element that a mask lets through."""
    traffic, builder = Traffic(), interpreter.interpreter_builder
    load, store = builder.create_masked_load, builder.create_masked_store

    def counting_load(ptrs: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        traffic.read += _bytes(ptrs, mask)
        return load(ptrs, mask, *rest, **named)

    def counting_store(ptrs: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        traffic.written += _bytes(ptrs, mask)
        return store(ptrs, value, mask, *rest, **named)

    builder.create_masked_load, builder.create_masked_store = counting_load, counting_store
    try:
        yield traffic
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store


def _bytes(ptrs: Any, mask: Any) -> int:
    size = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
    elements = ptrs.data.size if mask is None else int(np.broadcast_to(mask.data, ptrs.data.shape).sum())
    return elements * size


@contextlib.contextmanager
def whole_rows() -> Iterator[None]:
    """Inside, a scan with a combination of its own goes row by row, not number by number, in the same order."""
    original = interpreter.ScanOps.generic_scan
    interpreter.ScanOps.generic_scan = _scan_rows
    try:
        yield
    finally:
        interpreter.ScanOps.generic_scan = original


def _scan_rows(self: Any, inputs: tuple[Any, ...]) -> list[Any]:
    """`ScanOps.generic_scan`: all numbers of a step along the axis are combined at once."""
    arrays = [np.moveaxis(value.handle.data, self.axis, 0) for value in inputs]
    results = [np.zeros_like(array) for array in arrays]
    combine: Callable[..., Any] = self.combine_fn.fn
    kept: tuple[np.ndarray, ...] = ()
    for step in range(arrays[0].shape[0]):
        present = tuple(array[step] for array in arrays)
        if step:
            wrapped = [
                _wrap(value, like) for values in (kept, present) for value, like in zip(values, inputs, strict=True)
            ]
            combined = combine(*wrapped)
            combined = combined if isinstance(combined, tuple) else (combined,)
            kept = tuple(
                np.asarray(value.handle.data).reshape(array[step].shape)
                for value, array in zip(combined, arrays, strict=True)
            )
        else:
            kept = present
        for result, value in zip(results, kept, strict=True):
            result[step] = value
    return [
        self.to_tensor(np.moveaxis(result, 0, self.axis), value.dtype)
        for result, value in zip(results, inputs, strict=True)
    ]


def _wrap(data: np.ndarray, like: Any) -> Any:
    """A tensor of the interpreter around an array."""
    block = np.ascontiguousarray(np.atleast_1d(data))
    handle = interpreter.TensorHandle(block, like.dtype.scalar)
    return tl.tensor(handle, tl.block_type(like.dtype.scalar, list(block.shape)))
