"""The gated recurrence as Triton kernels, with the gates before it and the filter behind it.

A program holds a tile of CHUNK tokens and BLOCK channels in registers and scans it with `tl.associative_scan`, whose
combination of (a, x) pairs is exact where a document starts: a = 0. Two forms share the kernels:

- one pass: a program walks along the row, tile after tile, and carries the state. Each number is read once.
- chunked: every tile is first reduced to (product of its a, its last state), these are composed along the row, and
  every tile is then scanned from the state that enters it. Twice the reads of u and the gate, and all tiles at once.

The backward pass has the same two forms, from the row's end. It recomputes the states of a tile from the state that
entered it; no state of a token is stored. All arithmetic is float32. The gradients of the bias and of the rates are
summed over a program's tokens, and over programs by the caller: no atomics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from model.kernels.launch import blocks, bucket, evenly_spaced, launch, processors, row_stride, tuned

CHUNK = 64
"""Tokens of a tile."""

BLOCK = 32
"""Channels of a tile."""

_CHOICES = tuple({"BLOCK": block, "warps": warps} for block, warps in ((32, 4), (64, 8), (64, 4)))
_KEYS = ("H", "bucket", "ONE_PASS", "STARTS", "SIGNED", "SCALED")

_FLOOR = tl.constexpr(1e-6)  # INPUT_SCALE_FLOOR of the definition


# fmt: off
@triton.jit
def _compose(a_before, x_before, a, x):
    return a_before * a, a * x_before + x


@triton.jit
def _silu_gradient(x):
    s = tl.sigmoid(x)
    return s * (1 + x * (1 - s))


@triton.jit
def _tile(c, row, T, H, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """The tokens of chunk c (numbers in the batch), which of them exist, and the program's channels."""
    steps = c * CHUNK + tl.arange(0, CHUNK)
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return row.to(tl.int64) * T + steps, steps < T, channels


@triton.jit
def _read(at, tokens, inside, channels, H, stride,
          part: tl.constexpr):
    """A tile [CHUNK, BLOCK] of part 0, 1, ... of rows of parts of H channels, `stride` numbers apart, in float32."""
    mask = inside[:, None] & (channels < H)[None, :]
    offsets = tokens[:, None] * stride + part * H + channels[None, :]
    return tl.load(at + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _write(at, x, tokens, inside, channels, H,
           part: tl.constexpr, ROW: tl.constexpr):
    """Its counterpart, for rows of ROW parts, one behind the other; the numbers are rounded to the type of `at`."""
    mask = inside[:, None] & (channels < H)[None, :]
    tl.store(at + tokens[:, None] * (ROW * H) + part * H + channels[None, :], x, mask=mask)


@triton.jit
def _channel(at, channels, H, default: tl.constexpr):
    """A vector [BLOCK] of the parameters at `at`."""
    return tl.load(at + channels, mask=channels < H, other=default).to(tl.float32)


@triton.jit
def _keep(starts, tokens, inside, CHUNK: tl.constexpr, STARTS: tl.constexpr):
    """0 at the first token of a document and 1 elsewhere [CHUNK]."""
    keep = tl.full([CHUNK], 1.0, dtype=tl.float32)
    if STARTS:
        keep = tl.where(tl.load(starts + tokens, mask=inside, other=0) != 0, 0.0, keep)
    return keep


@triton.jit
def _decay(gate, rate, keep, inside, SIGNED: tl.constexpr):
    """The decay before and after resets [CHUNK, BLOCK]; tokens that do not exist keep the state as it is."""
    raw = (2 * gate - 1 if SIGNED else gate) * rate[None, :]
    return raw, tl.where(inside[:, None], raw * keep[:, None], 1.0)


@triton.jit
def _scale(raw, SCALED: tl.constexpr):
    return tl.sqrt(tl.maximum(1 - raw * raw, _FLOOR)) if SCALED else 1.0


@triton.jit
def _row(x, index, CHUNK: tl.constexpr):
    """Row `index` [BLOCK] of a tile [CHUNK, BLOCK]."""
    return tl.sum(tl.where((tl.arange(0, CHUNK) == index)[:, None], x, 0.0), axis=0)


@triton.jit
def _reduce_kernel(projected, bias, rate, starts, products, ends,
                   T, H, n, stride,
                   CHUNK: tl.constexpr, BLOCK: tl.constexpr, STARTS: tl.constexpr, SIGNED: tl.constexpr,
                   SCALED: tl.constexpr):
    """Each chunk's product of decays, and its last state from a zero start."""
    c, row = tl.program_id(1), tl.program_id(2)
    tokens, inside, channels = _tile(c, row, T, H, CHUNK, BLOCK)
    shift = _channel(bias, channels, H, 0.0)
    gate = tl.sigmoid(_read(projected, tokens, inside, channels, H, stride, 1) + shift[None, :])
    keep = _keep(starts, tokens, inside, CHUNK, STARTS)
    raw, a = _decay(gate, _channel(rate, channels, H, 1.0), keep, inside, SIGNED)
    x = gate * _read(projected, tokens, inside, channels, H, stride, 0) * _scale(raw, SCALED)
    product, state = tl.associative_scan((a, x), 0, _compose)
    at = (row.to(tl.int64) * n + c) * H + channels
    tl.store(products + at, _row(product, CHUNK - 1, CHUNK), mask=channels < H)
    tl.store(ends + at, _row(state, CHUNK - 1, CHUNK), mask=channels < H)


@triton.jit
def _reduce_back_kernel(projected, bias, rate, starts, gradient,
                        products, ends, T, H, n, stride,
                        CHUNK: tl.constexpr, BLOCK: tl.constexpr, STARTS: tl.constexpr,
                        SIGNED: tl.constexpr):
    """Each chunk's product of decays, and what its adjoint states hand to the chunk before, from nothing behind it."""
    c, row = tl.program_id(1), tl.program_id(2)
    tokens, inside, channels = _tile(c, row, T, H, CHUNK, BLOCK)
    shift = _channel(bias, channels, H, 0.0)
    gate = tl.sigmoid(_read(projected, tokens, inside, channels, H, stride, 1) + shift[None, :])
    keep = _keep(starts, tokens, inside, CHUNK, STARTS)
    _, a = _decay(gate, _channel(rate, channels, H, 1.0), keep, inside, SIGNED)
    features = _read(projected, tokens, inside, channels, H, stride, 2)
    heard = _read(gradient, tokens, inside, channels, H, H, 0) * features * tl.sigmoid(features)
    product, handed = tl.associative_scan((a, a * heard), 0, _compose, reverse=True)
    at = (row.to(tl.int64) * n + c) * H + channels
    tl.store(products + at, _row(product, 0, CHUNK), mask=channels < H)
    tl.store(ends + at, _row(handed, 0, CHUNK), mask=channels < H)


@triton.jit
def _pass_kernel(products, ends, first, last, H, n,
                 BLOCK: tl.constexpr, FIRST: tl.constexpr, REVERSE: tl.constexpr):
    """Compose the chunks of a row; `ends` is overwritten by what enters each of them, `last` by what leaves the row."""
    row, channels = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = channels < H
    state = tl.zeros([BLOCK], dtype=tl.float32)
    if FIRST:
        state = tl.load(first + row * H + channels, mask=mask, other=0.0).to(tl.float32)
    for i in range(n):
        c = n - 1 - i if REVERSE else i
        at = (row.to(tl.int64) * n + c) * H + channels
        product, end = tl.load(products + at, mask=mask, other=0.0), tl.load(ends + at, mask=mask, other=0.0)
        tl.store(ends + at, state, mask=mask)
        state = product * state + end
    tl.store(last + row * H + channels, state, mask=mask)


@tuned(*_CHOICES, key=_KEYS)
@triton.jit
def _forward_kernel(projected, bias, rate, starts, initial,
                    entering, y, final, T, H, n, stride, bucket,
                    CHUNK: tl.constexpr, BLOCK: tl.constexpr, STARTS: tl.constexpr, SIGNED: tl.constexpr,
                    SCALED: tl.constexpr, INITIAL: tl.constexpr, ONE_PASS: tl.constexpr):
    """Scan and filter. In one pass the states that enter the chunks are written; else they are read."""
    first, count, row = 0, n, tl.program_id(1)
    if not ONE_PASS:
        first, count, row = tl.program_id(1), 1, tl.program_id(2)
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = channels < H
    shift, own = _channel(bias, channels, H, 0.0), _channel(rate, channels, H, 1.0)
    state = tl.zeros([BLOCK], dtype=tl.float32)
    if ONE_PASS and INITIAL:
        state = tl.load(initial + row * H + channels, mask=mask, other=0.0).to(tl.float32)
    for c in range(first, first + count):
        tokens, inside, channels = _tile(c, row, T, H, CHUNK, BLOCK)
        at = entering + (row.to(tl.int64) * n + c) * H + channels
        if ONE_PASS:
            tl.store(at, state, mask=mask)
        else:
            state = tl.load(at, mask=mask, other=0.0)
        gate = tl.sigmoid(_read(projected, tokens, inside, channels, H, stride, 1) + shift[None, :])
        keep = _keep(starts, tokens, inside, CHUNK, STARTS)
        raw, a = _decay(gate, own, keep, inside, SIGNED)
        x = gate * _read(projected, tokens, inside, channels, H, stride, 0) * _scale(raw, SCALED)
        product, states = tl.associative_scan((a, x), 0, _compose)
        states += product * state[None, :]
        features = _read(projected, tokens, inside, channels, H, stride, 2)
        _write(y, states * features * tl.sigmoid(features), tokens, inside, channels, H, 0, 1)
        state = _row(states, CHUNK - 1, CHUNK)
    if ONE_PASS:
        tl.store(final + row * H + channels, state, mask=mask)


@tuned({"BLOCK": 32, "warps": 8}, *_CHOICES, key=_KEYS)
@triton.jit
def _backward_kernel(projected, bias, rate, starts, entering,
                     gradient, last, leaving, grad_projected, grad_bias,
                     grad_rate, grad_initial, T, H, n, stride, bucket,
                     CHUNK: tl.constexpr, BLOCK: tl.constexpr, STARTS: tl.constexpr, SIGNED: tl.constexpr,
                     SCALED: tl.constexpr, LAST: tl.constexpr, ONE_PASS: tl.constexpr):
    """Adjoint states from the row's end, and the gradients of a tile. `leaving` is what enters a chunk from behind."""
    first, count, row, parts = 0, n, tl.program_id(1), 1
    if not ONE_PASS:
        first, count, row, parts = tl.program_id(1), 1, tl.program_id(2), n
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = channels < H
    shift, own = _channel(bias, channels, H, 0.0), _channel(rate, channels, H, 1.0)
    index = tl.broadcast_to(tl.arange(0, CHUNK)[:, None], (CHUNK, BLOCK))
    summed_bias, summed_rate = tl.zeros([BLOCK], dtype=tl.float32), tl.zeros([BLOCK], dtype=tl.float32)
    behind = tl.zeros([BLOCK], dtype=tl.float32)
    if ONE_PASS and LAST:
        behind = tl.load(last + row * H + channels, mask=mask, other=0.0).to(tl.float32)
    for i in range(count):
        c = first + count - 1 - i
        tokens, inside, channels = _tile(c, row, T, H, CHUNK, BLOCK)
        at = (row.to(tl.int64) * n + c) * H + channels
        if not ONE_PASS:
            behind = tl.load(leaving + at, mask=mask, other=0.0)
        gate = tl.sigmoid(_read(projected, tokens, inside, channels, H, stride, 1) + shift[None, :])
        keep = _keep(starts, tokens, inside, CHUNK, STARTS)
        raw, a = _decay(gate, own, keep, inside, SIGNED)
        inputs = _read(projected, tokens, inside, channels, H, stride, 0)
        scale = _scale(raw, SCALED)
        product, states = tl.associative_scan((a, gate * inputs * scale), 0, _compose)
        state = tl.load(entering + at, mask=mask, other=0.0)
        states += product * state[None, :]

        features = _read(projected, tokens, inside, channels, H, stride, 2)
        dy = _read(gradient, tokens, inside, channels, H, H, 0)
        _write(grad_projected, dy * states * _silu_gradient(features), tokens, inside, channels, H, 2, 3)
        heard = dy * features * tl.sigmoid(features)
        a_next = tl.where(index == CHUNK - 1, 1.0, tl.gather(a, tl.minimum(index + 1, CHUNK - 1), axis=0))
        product, adjoint = tl.associative_scan((a_next, heard), 0, _compose, reverse=True)
        adjoint += product * behind[None, :]
        behind = _row(a * adjoint, 0, CHUNK)

        before = tl.where(index == 0, state[None, :], tl.gather(states, tl.maximum(index - 1, 0), axis=0))
        grad_decay = adjoint * before * keep[:, None]
        grad_gate = adjoint * inputs * scale
        if SCALED:
            bounded = 1 - raw * raw > _FLOOR
            grad_decay += tl.where(bounded, -adjoint * gate * inputs * raw / scale, 0.0)
        turn = 2 * gate - 1 if SIGNED else gate
        summed_rate += tl.sum(tl.where(inside[:, None], grad_decay * turn, 0.0), axis=0)
        grad_gate += grad_decay * own[None, :] * (2.0 if SIGNED else 1.0)
        grad_gate = tl.where(inside[:, None], grad_gate * gate * (1 - gate), 0.0)
        summed_bias += tl.sum(grad_gate, axis=0)
        _write(grad_projected, adjoint * gate * scale, tokens, inside, channels, H, 0, 3)
        _write(grad_projected, grad_gate, tokens, inside, channels, H, 1, 3)
    part = (row.to(tl.int64) * parts + first) * H + channels
    tl.store(grad_bias + part, summed_bias, mask=mask)
    tl.store(grad_rate + part, summed_rate, mask=mask)
    if ONE_PASS:
        tl.store(grad_initial + row * H + channels, behind, mask=mask)


# fmt: on
def one_pass(projected: Tensor) -> bool:
    """Whether rows and channels alone give the device enough programs, so that each may walk along its row."""
    batch, _, width = projected.shape
    return batch * blocks(width // 3, BLOCK) >= 4 * processors(projected)


def _grid(size: int, batch: int, chunks: int | None) -> Callable[[dict[str, Any]], tuple[int, ...]]:
    """Programs for blocks of channels, for chunks unless a program walks along them, and for rows."""
    walked = () if chunks is None else (chunks,)
    return lambda constants: (blocks(size, constants["BLOCK"]), *walked, batch)


class _GatedScan(torch.autograd.Function):
    """See `model.gated_scan.gated_scan`; `walk` chooses the form."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        projected: Tensor,
        bias: Tensor,
        rate: Tensor | None,
        starts: Tensor | None,
        initial: Tensor | None,
        signed: bool,
        scaled: bool,
        walk: bool,
    ) -> tuple[Tensor, Tensor]:
        batch, length, width = projected.shape
        size, count = width // 3, blocks(length, CHUNK)
        new: Any = lambda *shape: projected.new_empty(shape, dtype=torch.float32)  # noqa: E731
        entering, final, y = new(batch, count, size), new(batch, size), projected.new_empty(batch, length, size)
        own = torch.ones_like(bias) if rate is None else rate
        flags = {"CHUNK": CHUNK, "STARTS": starts is not None, "SIGNED": signed}
        sizes, columns = (length, size, count, row_stride(projected)), blocks(size, BLOCK)
        known = (projected, bias, own, bias if starts is None else starts)
        if not walk:
            products = new(batch, count, size)
            grid = (columns, count, batch)
            launch(_reduce_kernel, grid, *known, products, entering, *sizes, **flags, BLOCK=BLOCK, SCALED=scaled)
            first = entering if initial is None else initial
            passing = {"BLOCK": BLOCK, "FIRST": initial is not None, "REVERSE": False}
            launch(_pass_kernel, (columns, batch), products, entering, first, final, size, count, **passing, warps=1)
        launch(
            _forward_kernel,
            _grid(size, batch, None if walk else count),
            *(*known, bias if initial is None else initial, entering, y, final, *sizes, bucket(batch * length)),
            **flags,
            SCALED=scaled,
            INITIAL=initial is not None,
            ONE_PASS=walk,
        )
        ctx.save_for_backward(projected, bias, rate, starts, entering)  # type: ignore[arg-type]  # None is allowed
        ctx.chosen = (signed, scaled, walk, initial is not None)  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor | None, grad_final: Tensor | None) -> tuple[Tensor | None, ...]:
        projected, bias, rate, starts, entering = ctx.saved_tensors  # type: ignore[attr-defined]
        signed, scaled, walk, from_state = ctx.chosen  # type: ignore[attr-defined]
        batch, length, width = projected.shape
        size, count = width // 3, entering.shape[1]
        grad = projected.new_zeros(batch, length, size) if grad is None else grad.contiguous()
        own = torch.ones_like(bias) if rate is None else rate
        flags = {"CHUNK": CHUNK, "STARTS": starts is not None, "SIGNED": signed}
        sizes, columns = (length, size, count, row_stride(projected)), blocks(size, BLOCK)
        known = (projected, bias, own, bias if starts is None else starts)
        leaving, grad_initial = torch.empty_like(entering), torch.empty_like(entering[:, 0])
        last = leaving if grad_final is None else grad_final.contiguous()
        if not walk:
            products = torch.empty_like(entering)
            grid = (columns, count, batch)
            launch(_reduce_back_kernel, grid, *known, grad, products, leaving, *sizes, **flags, BLOCK=BLOCK)
            passing = {"BLOCK": BLOCK, "FIRST": grad_final is not None, "REVERSE": True}
            launch(
                _pass_kernel, (columns, batch), products, leaving, last, grad_initial, size, count, **passing, warps=1
            )
        grad_projected = projected.new_empty(projected.shape)
        grad_bias = entering.new_empty(batch, 1 if walk else count, size)
        grad_rate = torch.empty_like(grad_bias)
        launch(
            _backward_kernel,
            _grid(size, batch, None if walk else count),
            *(*known, entering, grad, last, leaving, grad_projected, grad_bias, grad_rate, grad_initial, *sizes),
            bucket(batch * length),
            **flags,
            SCALED=scaled,
            LAST=grad_final is not None,
            ONE_PASS=walk,
        )
        return (
            grad_projected,
            grad_bias.sum((0, 1)).to(bias.dtype),
            None if rate is None else grad_rate.sum((0, 1)).to(rate.dtype),
            None,
            grad_initial if from_state else None,
            *(None, None, None),
        )


def gated_scan(
    projected: Tensor,
    gate_bias: Tensor,
    rate: Tensor | None = None,
    starts: Tensor | None = None,
    initial: Tensor | None = None,
    signed: bool = False,
    scaled: bool = False,
    chunk: int = 32,
    walk: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """See `model.gated_scan.gated_scan`. `chunk` is without effect; `walk` forces the one-pass form, or the other."""
    projected = evenly_spaced(projected)
    marks = None if starts is None else starts.contiguous().view(torch.uint8)
    form = one_pass(projected) if walk is None else walk
    state = None if initial is None else initial.float().contiguous()
    y, final = _GatedScan.apply(projected, gate_bias, rate, marks, state, signed, scaled, form)
    return y, final
