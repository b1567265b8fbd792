"""The programs of `model.kernels.chunked`: what each of them computes of one chunk of tokens.

Sums of logarithms begin anew at every document's start, so that nothing of one document touches the rounding of
another, and no difference of long sums is formed. All arithmetic is float32; products of matrices are exact float32
("ieee") or TF32.
"""

from __future__ import annotations

import triton
import triton.language as tl


# fmt: off
@triton.jit
def _restart(keep_before, sum_before, keep, value):
    return keep_before * keep, keep * sum_before + value


@triton.jit
def _steps(c, T, row, CHUNK: tl.constexpr):
    """The first token of chunk c (its number in the batch), and which of the chunk's tokens exist.

    Only numbers that a program has one of are 64 bits wide: offsets within a tile take half the registers.
    """
    return row.to(tl.int64) * T + c * CHUNK, c * CHUNK + tl.arange(0, CHUNK) < T


@triton.jit
def _decays(dt, a, starts, begin, inside, head, heads,
            CHUNK: tl.constexpr, DECAY: tl.constexpr, STARTS: tl.constexpr):
    """Steps, logarithms of the decay since the document's or the chunk's start, and the document's number [CHUNK]."""
    step = tl.full([CHUNK], 1.0, dtype=tl.float32)
    logs = tl.zeros([CHUNK], dtype=tl.float32)
    begun = tl.zeros([CHUNK], dtype=tl.int32)
    keep = tl.full([CHUNK], 1.0, dtype=tl.float32)
    if STARTS:
        first = tl.load(starts + begin + tl.arange(0, CHUNK), mask=inside, other=0).to(tl.int32)
        begun = tl.cumsum(first, axis=0)
        keep = tl.where(first != 0, 0.0, 1.0)
    if DECAY:
        step = tl.load(dt + begin * heads + head + tl.arange(0, CHUNK) * heads, mask=inside, other=0.0).to(tl.float32)
        logs = step * tl.load(a + head).to(tl.float32)
        _, logs = tl.associative_scan((keep, logs), 0, _restart)
    return step, logs, begun


@triton.jit
def _at_end(x, CHUNK: tl.constexpr):
    """The last element of [CHUNK]."""
    return tl.sum(tl.where(tl.arange(0, CHUNK) == CHUNK - 1, x, 0 * x), axis=0)


@triton.jit
def _within(logs, begun, CHUNK: tl.constexpr):
    """The decay from token s (column) to token t (row) [CHUNK, CHUNK]: 0 where s is later or of another document."""
    index = tl.arange(0, CHUNK)
    seen = (index[:, None] >= index[None, :]) & (begun[:, None] == begun[None, :])
    return tl.where(seen, tl.exp(tl.where(seen, logs[:, None] - logs[None, :], 0.0)), 0.0)


@triton.jit
def _places(inside, heads, first, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets of a tile's numbers from its first one, and which of them exist [CHUNK, BLOCK]."""
    tokens, channels = tl.arange(0, inside.shape[0]), tl.arange(0, BLOCK)
    return tokens[:, None] * (heads * SIZE) + channels[None, :], inside[:, None] & (first + channels < SIZE)[None, :]


@triton.jit
def _tile(x, begin, inside, head, heads, first, SIZE: tl.constexpr,
          BLOCK: tl.constexpr):
    """Channels `first` ... of a head, of all tokens of a chunk [CHUNK, BLOCK], in float32."""
    at, mask = _places(inside, heads, first, SIZE, BLOCK)
    return tl.load(x + (begin * heads + head) * SIZE + first + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store_tile(x, values, begin, inside, head, heads, first,
                SIZE: tl.constexpr, BLOCK: tl.constexpr):
    at, mask = _places(inside, heads, first, SIZE, BLOCK)
    tl.store(x + (begin * heads + head) * SIZE + first + at, values, mask=mask)


@triton.jit
def _state_block(states, index, p, first, P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr,
                 BN: tl.constexpr):
    """Addresses and mask of rows `p` ... and channels `first` ... of state `index` [BP, BN]."""
    rows, channels = tl.arange(0, BP), tl.arange(0, BN)
    at = index.to(tl.int64) * (P * N) + p * N + first
    mask = (p + rows < P)[:, None] & (first + channels < N)[None, :]
    return states + at + (rows[:, None] * N + channels[None, :]), mask


@triton.jit
def _state(states, index, first, P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr,
           BN: tl.constexpr):
    """Addresses and mask of channels `first` ... of state `index`, all its rows [BP, BN]."""
    return _state_block(states, index, 0, first, P, N, BP, BN)


@triton.jit
def ends_kernel(x, k, dt, a, starts, ends, kept,
                 T, n, heads, key_heads, R: tl.constexpr, P: tl.constexpr,
                 N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr, DECAY: tl.constexpr,
                 STARTS: tl.constexpr, BACK: tl.constexpr, PRECISION: tl.constexpr):
    """What a chunk leaves: sum of dt x k^T, decayed to its end. With BACK, what it hands to the chunk before: sum of
    x k^T, decayed from its start, over the R heads of x that share a state."""
    block, c, row, head = tl.program_id(0), tl.program_id(1), tl.program_id(2) // heads, tl.program_id(2) % heads
    begin, inside = _steps(c, T, row, CHUNK)
    step, logs, begun = _decays(dt, a, starts, begin, inside, head, heads, CHUNK, DECAY, STARTS)
    last = _at_end(begun, CHUNK)
    if BACK:
        weight = tl.where(begun == 0, tl.exp(logs), 0.0)
    else:
        weight = tl.where(begun == last, step * tl.exp(tl.where(begun == last, _at_end(logs, CHUNK) - logs, 0.0)), 0.0)
    total = tl.zeros([BP, BN], dtype=tl.float32)
    for r in range(R):
        own = head * R + r
        values = _tile(x, begin, inside, own, heads * R, 0, P, BP) * weight[:, None]
        keys = _tile(k, begin, inside, own * key_heads // (heads * R), key_heads, block * BN, N, BN)
        total += tl.dot(tl.trans(values), keys, input_precision=PRECISION)
    index = (row * n + c) * heads + head
    at, mask = _state(ends, index, block * BN, P, N, BP, BN)
    tl.store(at, total, mask=mask)
    if block == 0:
        tl.store(kept + index, tl.where(last == 0, tl.exp(_at_end(logs, CHUNK)), 0.0))


@triton.jit
def pass_kernel(ends, kept, first, last, n, heads, SIZE,
                 BLOCK: tl.constexpr, FIRST: tl.constexpr, REVERSE: tl.constexpr):
    """Compose the chunks of a row: `ends` is overwritten by what enters each of them, `last` by what leaves the row."""
    row, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    numbers = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = numbers < SIZE
    state = tl.zeros([BLOCK], dtype=tl.float32)
    whole = tl.program_id(1).to(tl.int64) * SIZE + numbers
    if FIRST:
        state = tl.load(first + whole, mask=mask, other=0.0).to(tl.float32)
    for i in range(n):
        c = n - 1 - i if REVERSE else i
        index = (row * n + c) * heads + head
        at = ends + index.to(tl.int64) * SIZE + numbers
        end = tl.load(at, mask=mask, other=0.0)
        tl.store(at, state, mask=mask)
        state = tl.load(kept + index) * state + end
    tl.store(last + whole, state, mask=mask)


@triton.jit
def output_kernel(q, k, v, dt, a, starts, entering,
                   y, T, n, heads, key_heads, query_heads,
                   R: tl.constexpr, P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
                   CHUNK: tl.constexpr, DECAY: tl.constexpr, STARTS: tl.constexpr, PRECISION: tl.constexpr):
    """Outputs of one head and chunk: what its tokens say to each other, and what the entering state says to them."""
    c, row, own = tl.program_id(0), tl.program_id(1) // (heads * R), tl.program_id(1) % (heads * R)
    head = own // R
    begin, inside = _steps(c, T, row, CHUNK)
    step, logs, begun = _decays(dt, a, starts, begin, inside, head, heads, CHUNK, DECAY, STARTS)
    scores = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
    heard = tl.zeros([CHUNK, BP], dtype=tl.float32)
    for first in tl.range(0, N, BN, disable_licm=True):
        queries = _tile(q, begin, inside, own * query_heads // (heads * R), query_heads, first, N, BN)
        keys = _tile(k, begin, inside, own * key_heads // (heads * R), key_heads, first, N, BN)
        at, mask = _state(entering, (row * n + c) * heads + head, first, P, N, BP, BN)
        state = tl.load(at, mask=mask, other=0.0)
        scores += tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        heard += tl.dot(queries, tl.trans(state), input_precision=PRECISION)
    scores *= _within(logs, begun, CHUNK) * step[None, :]
    values = _tile(v, begin, inside, head, heads, 0, P, BP)
    heard *= tl.where(begun == 0, tl.exp(logs), 0.0)[:, None]
    heard += tl.dot(scores, values, input_precision=PRECISION)
    _store_tile(y, heard, begin, inside, own, heads * R, 0, P, BP)


@triton.jit
def values_kernel(q, k, v, dt, a, starts, entering,
                   leaving, gradient, grad_v, grad_dt, grad_a,
                   T, n, heads, key_heads, query_heads, R: tl.constexpr,
                   P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr,
                   DECAY: tl.constexpr, STARTS: tl.constexpr, PRECISION: tl.constexpr):
    """Gradients of the values and of the steps of one value head and chunk. `leaving` is that of the state behind."""
    c, row, head = tl.program_id(0), tl.program_id(1) // heads, tl.program_id(1) % heads
    begin, inside = _steps(c, T, row, CHUNK)
    step, logs, begun = _decays(dt, a, starts, begin, inside, head, heads, CHUNK, DECAY, STARTS)
    last, index = _at_end(begun, CHUNK), (row * n + c) * heads + head
    to_end = tl.where(begun == last, tl.exp(tl.where(begun == last, _at_end(logs, CHUNK) - logs, 0.0)), 0.0)
    from_start = tl.where(begun == 0, tl.exp(logs), 0.0)
    told = tl.zeros([CHUNK, BP], dtype=tl.float32)  # the gradient of dt v
    place = tl.arange(0, CHUNK)
    later = place[:, None] <= place[None, :]
    grad_log = tl.zeros([CHUNK], dtype=tl.float32)
    passed = 0.0
    for first in tl.range(0, N, BN, disable_licm=True):
        keys = _tile(k, begin, inside, head * key_heads // heads, key_heads, first, N, BN)
        at, mask = _state(leaving, index, first, P, N, BP, BN)
        behind = tl.load(at, mask=mask, other=0.0)
        told += tl.dot(keys, tl.trans(behind), input_precision=PRECISION)
        if DECAY:
            at, mask = _state(entering, index, first, P, N, BP, BN)
            passed += tl.sum(tl.sum(tl.load(at, mask=mask, other=0.0) * behind, axis=1), axis=0)
    told *= to_end[:, None]
    if DECAY:
        ended = step * tl.sum(_tile(v, begin, inside, head, heads, 0, P, BP) * told, axis=1)
        grad_log += tl.sum(tl.where(later, 0.0, ended[None, :]), axis=1)
        grad_log += tl.where(last == 0, passed * tl.exp(_at_end(logs, CHUNK)), 0.0)
    for r in range(R):
        own = head * R + r
        dy = _tile(gradient, begin, inside, own, heads * R, 0, P, BP)
        scores = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
        heard = tl.zeros([CHUNK], dtype=tl.float32)
        for first in tl.range(0, N, BN, disable_licm=True):
            queries = _tile(q, begin, inside, own * query_heads // (heads * R), query_heads, first, N, BN)
            keys = _tile(k, begin, inside, own * key_heads // (heads * R), key_heads, first, N, BN)
            scores += tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            if DECAY:  # dy times what the state said, without keeping that
                at, mask = _state(entering, index, first, P, N, BP, BN)
                said = tl.dot(dy, tl.load(at, mask=mask, other=0.0), input_precision=PRECISION)
                heard += from_start * tl.sum(queries * said, axis=1)
        scores *= _within(logs, begun, CHUNK)
        told += tl.dot(tl.trans(scores), dy, input_precision=PRECISION)
        if DECAY:
            grad_log += tl.sum(tl.where(later, heard[None, :], 0.0), axis=1)
            tl.debug_barrier()  # the two products side by side need more registers than an A100 has
            values = _tile(v, begin, inside, head, heads, 0, P, BP)
            scores *= tl.dot(dy, tl.trans(values), input_precision=PRECISION) * step[None, :]
            # token t decays what passes from before it to itself or behind: a sum without differences, which round
            crossing = tl.dot(tl.where(later, 1.0, 0.0), scores, input_precision=PRECISION)
            grad_log += tl.sum(tl.where(later, 0.0, crossing), axis=1)
    _store_tile(grad_v, told * step[:, None], begin, inside, head, heads, 0, P, BP)
    if DECAY:
        rate = tl.load(a + head).to(tl.float32)
        values = _tile(v, begin, inside, head, heads, 0, P, BP)
        grad_step = tl.sum(values * told, axis=1) + grad_log * rate
        tl.store(grad_dt + begin * heads + head + place * heads, grad_step, mask=inside)
        tl.store(grad_a + index, tl.sum(grad_log * step, axis=0))


@triton.jit
def keys_kernel(q, k, v, dt, a, starts, entering,
                 leaving, gradient, grad_q, grad_k, T, n,
                 heads, key_heads, S: tl.constexpr, R: tl.constexpr, SHARED: tl.constexpr,
                 P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr,
                 DECAY: tl.constexpr, STARTS: tl.constexpr, PRECISION: tl.constexpr):
    """Gradients of a block of channels of the keys and queries of one key head and chunk, over the S heads of y that it
    serves. Queries are SHARED by them, or each has its own."""
    block, c = tl.program_id(0), tl.program_id(1)
    row, group = tl.program_id(2) // key_heads, tl.program_id(2) % key_heads
    begin, inside = _steps(c, T, row, CHUNK)
    outputs, query_heads = key_heads * S, key_heads if SHARED else key_heads * S
    keys = _tile(k, begin, inside, group, key_heads, block * BN, N, BN)
    sum_q, sum_k = tl.zeros([CHUNK, BN], dtype=tl.float32), tl.zeros([CHUNK, BN], dtype=tl.float32)
    for s in tl.range(0, S, disable_licm=True):
        own = group * S + s
        head = own // R
        step, logs, begun = _decays(dt, a, starts, begin, inside, head, heads, CHUNK, DECAY, STARTS)
        last, index = _at_end(begun, CHUNK), (row * n + c) * heads + head
        weights = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
        for p in tl.range(0, P, BP, disable_licm=True):
            dy = _tile(gradient, begin, inside, own, outputs, p, P, BP)
            values = _tile(v, begin, inside, head, heads, p, P, BP)
            weights += tl.dot(dy, tl.trans(values), input_precision=PRECISION)
        weights *= _within(logs, begun, CHUNK) * step[None, :]
        query_head = group if SHARED else own
        queries = _tile(q, begin, inside, query_head, query_heads, block * BN, N, BN)
        grad = tl.dot(weights, keys, input_precision=PRECISION)
        sum_k += tl.dot(tl.trans(weights), queries, input_precision=PRECISION)
        from_start = tl.where(begun == 0, tl.exp(logs), 0.0)
        ends = _at_end(logs, CHUNK) - logs
        to_end = tl.where(begun == last, step * tl.exp(tl.where(begun == last, ends, 0.0)), 0.0)
        for p in tl.range(0, P, BP, disable_licm=True):
            dy = _tile(gradient, begin, inside, own, outputs, p, P, BP) * from_start[:, None]
            at, mask = _state_block(entering, index, p, block * BN, P, N, BP, BN)
            grad += tl.dot(dy, tl.load(at, mask=mask, other=0.0), input_precision=PRECISION)
            if own % R == 0:
                values = _tile(v, begin, inside, head, heads, p, P, BP) * to_end[:, None]
                at, mask = _state_block(leaving, index, p, block * BN, P, N, BP, BN)
                sum_k += tl.dot(values, tl.load(at, mask=mask, other=0.0), input_precision=PRECISION)
        if SHARED:
            sum_q += grad
        else:
            _store_tile(grad_q, grad, begin, inside, query_head, query_heads, block * BN, N, BN)
    _store_tile(grad_k, sum_k, begin, inside, group, key_heads, block * BN, N, BN)
    if SHARED:
        _store_tile(grad_q, sum_q, begin, inside, group, query_heads, block * BN, N, BN)
