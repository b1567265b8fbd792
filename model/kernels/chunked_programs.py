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
    """The tokens of chunk c (numbers in the batch), and which of them exist."""
    steps = c * CHUNK + tl.arange(0, CHUNK)
    return row.to(tl.int64) * T + steps, steps < T


@triton.jit
def _decays(dt, a, starts, tokens, inside, head, heads,
            CHUNK: tl.constexpr, DECAY: tl.constexpr, STARTS: tl.constexpr):
    """Steps, logarithms of the decay since the document's or the chunk's start, and the document's number [CHUNK]."""
    step = tl.full([CHUNK], 1.0, dtype=tl.float32)
    logs = tl.zeros([CHUNK], dtype=tl.float32)
    begun = tl.zeros([CHUNK], dtype=tl.int32)
    keep = tl.full([CHUNK], 1.0, dtype=tl.float32)
    if STARTS:
        first = tl.load(starts + tokens, mask=inside, other=0).to(tl.int32)
        begun = tl.cumsum(first, axis=0)
        keep = tl.where(first != 0, 0.0, 1.0)
    if DECAY:
        step = tl.load(dt + tokens * heads + head, mask=inside, other=0.0).to(tl.float32)
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
def _tile(x, tokens, inside, head, heads, first, SIZE: tl.constexpr,
          BLOCK: tl.constexpr):
    """Channels `first` ... of a head, of all tokens of a chunk [CHUNK, BLOCK], in float32."""
    channels = first + tl.arange(0, BLOCK)
    at = tokens[:, None] * (heads * SIZE) + head * SIZE + channels[None, :]
    return tl.load(x + at, mask=inside[:, None] & (channels < SIZE)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _store_tile(x, values, tokens, inside, head, heads, first,
                SIZE: tl.constexpr, BLOCK: tl.constexpr):
    channels = first + tl.arange(0, BLOCK)
    at = tokens[:, None] * (heads * SIZE) + head * SIZE + channels[None, :]
    tl.store(x + at, values, mask=inside[:, None] & (channels < SIZE)[None, :])


@triton.jit
def _state(states, index, first, P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr,
           BN: tl.constexpr):
    """Addresses and mask of channels `first` ... of state `index` [BP, BN]."""
    p, channels = tl.arange(0, BP), first + tl.arange(0, BN)
    at = index.to(tl.int64) * (P * N) + p[:, None] * N + channels[None, :]
    return states + at, (p < P)[:, None] & (channels < N)[None, :]


@triton.jit
def ends_kernel(x, k, dt, a, starts, ends, kept,
                 T, n, heads, key_heads, R: tl.constexpr, P: tl.constexpr,
                 N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr, DECAY: tl.constexpr,
                 STARTS: tl.constexpr, BACK: tl.constexpr, PRECISION: tl.constexpr):
    """What a chunk leaves: sum of dt x k^T, decayed to its end. With BACK, what it hands to the chunk before: sum of
    x k^T, decayed from its start, over the R heads of x that share a state."""
    block, c, row, head = tl.program_id(0), tl.program_id(1), tl.program_id(2) // heads, tl.program_id(2) % heads
    tokens, inside = _steps(c, T, row, CHUNK)
    step, logs, begun = _decays(dt, a, starts, tokens, inside, head, heads, CHUNK, DECAY, STARTS)
    last = _at_end(begun, CHUNK)
    if BACK:
        weight = tl.where(begun == 0, tl.exp(logs), 0.0)
    else:
        weight = tl.where(begun == last, step * tl.exp(tl.where(begun == last, _at_end(logs, CHUNK) - logs, 0.0)), 0.0)
    total = tl.zeros([BP, BN], dtype=tl.float32)
    for r in range(R):
        own = head * R + r
        values = _tile(x, tokens, inside, own, heads * R, 0, P, BP) * weight[:, None]
        keys = _tile(k, tokens, inside, own * key_heads // (heads * R), key_heads, block * BN, N, BN)
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
    tokens, inside = _steps(c, T, row, CHUNK)
    step, logs, begun = _decays(dt, a, starts, tokens, inside, head, heads, CHUNK, DECAY, STARTS)
    scores = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
    heard = tl.zeros([CHUNK, BP], dtype=tl.float32)
    for first in range(0, N, BN):
        queries = _tile(q, tokens, inside, own * query_heads // (heads * R), query_heads, first, N, BN)
        keys = _tile(k, tokens, inside, own * key_heads // (heads * R), key_heads, first, N, BN)
        at, mask = _state(entering, (row * n + c) * heads + head, first, P, N, BP, BN)
        state = tl.load(at, mask=mask, other=0.0)
        scores += tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        heard += tl.dot(queries, tl.trans(state), input_precision=PRECISION)
    scores *= _within(logs, begun, CHUNK) * step[None, :]
    values = _tile(v, tokens, inside, head, heads, 0, P, BP)
    heard *= tl.where(begun == 0, tl.exp(logs), 0.0)[:, None]
    heard += tl.dot(scores, values, input_precision=PRECISION)
    _store_tile(y, heard, tokens, inside, own, heads * R, 0, P, BP)


@triton.jit
def values_kernel(q, k, v, dt, a, starts, entering,
                   leaving, gradient, grad_v, grad_dt, grad_a,
                   T, n, heads, key_heads, query_heads, R: tl.constexpr,
                   P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr,
                   DECAY: tl.constexpr, STARTS: tl.constexpr, PRECISION: tl.constexpr):
    """Gradients of the values and of the steps of one value head and chunk. `leaving` is that of the state behind."""
    c, row, head = tl.program_id(0), tl.program_id(1) // heads, tl.program_id(1) % heads
    tokens, inside = _steps(c, T, row, CHUNK)
    step, logs, begun = _decays(dt, a, starts, tokens, inside, head, heads, CHUNK, DECAY, STARTS)
    last, index = _at_end(begun, CHUNK), (row * n + c) * heads + head
    to_end = tl.where(begun == last, tl.exp(tl.where(begun == last, _at_end(logs, CHUNK) - logs, 0.0)), 0.0)
    from_start = tl.where(begun == 0, tl.exp(logs), 0.0)
    decay = _within(logs, begun, CHUNK)
    values = _tile(v, tokens, inside, head, heads, 0, P, BP)
    told = tl.zeros([CHUNK, BP], dtype=tl.float32)  # the gradient of dt v
    grad_logs = tl.zeros([CHUNK], dtype=tl.float32)
    passed = 0.0
    for r in range(R):
        own = head * R + r
        dy = _tile(gradient, tokens, inside, own, heads * R, 0, P, BP)
        scores = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
        heard = tl.zeros([CHUNK, BP], dtype=tl.float32)
        for first in range(0, N, BN):
            queries = _tile(q, tokens, inside, own * query_heads // (heads * R), query_heads, first, N, BN)
            keys = _tile(k, tokens, inside, own * key_heads // (heads * R), key_heads, first, N, BN)
            at, mask = _state(entering, index, first, P, N, BP, BN)
            state = tl.load(at, mask=mask, other=0.0)
            scores += tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            heard += tl.dot(queries, tl.trans(state), input_precision=PRECISION)
            if r == 0:
                at, mask = _state(leaving, index, first, P, N, BP, BN)
                behind = tl.load(at, mask=mask, other=0.0)
                told += tl.dot(keys, tl.trans(behind), input_precision=PRECISION) * to_end[:, None]
                passed += tl.sum(tl.sum(state * behind, axis=1), axis=0)
        if DECAY:  # noqa: SIM102  # a constant, and then a number that is known at run time
            if r == 0:
                ended = step * tl.sum(values * told, axis=1)
                grad_logs -= ended
                passed = tl.where(last == 0, passed * tl.exp(_at_end(logs, CHUNK)), 0.0) + tl.sum(ended, axis=0)
        scores *= decay
        told += tl.dot(tl.trans(scores), dy, input_precision=PRECISION)
        if DECAY:
            grad_logs += from_start * tl.sum(heard * dy, axis=1)
            both = scores * tl.dot(dy, tl.trans(values), input_precision=PRECISION) * step[None, :]
            grad_logs += tl.sum(both, axis=1) - tl.sum(both, axis=0)
    _store_tile(grad_v, told * step[:, None], tokens, inside, head, heads, 0, P, BP)
    if DECAY:
        grad_logs += tl.where(tl.arange(0, CHUNK) == CHUNK - 1, passed, 0.0)
        index_in = tl.arange(0, CHUNK)
        later = (index_in[:, None] <= index_in[None, :]) & (begun[:, None] == begun[None, :])
        grad_log = tl.sum(tl.where(later, grad_logs[None, :], 0.0), axis=1)
        rate = tl.load(a + head).to(tl.float32)
        tl.store(grad_dt + tokens * heads + head, tl.sum(values * told, axis=1) + grad_log * rate, mask=inside)
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
    tokens, inside = _steps(c, T, row, CHUNK)
    outputs, query_heads = key_heads * S, key_heads if SHARED else key_heads * S
    keys = _tile(k, tokens, inside, group, key_heads, block * BN, N, BN)
    sum_q, sum_k = tl.zeros([CHUNK, BN], dtype=tl.float32), tl.zeros([CHUNK, BN], dtype=tl.float32)
    for s in range(S):
        own = group * S + s
        head = own // R
        step, logs, begun = _decays(dt, a, starts, tokens, inside, head, heads, CHUNK, DECAY, STARTS)
        last, index = _at_end(begun, CHUNK), (row * n + c) * heads + head
        dy = _tile(gradient, tokens, inside, own, outputs, 0, P, BP)
        values = _tile(v, tokens, inside, head, heads, 0, P, BP) * step[:, None]
        query_head = group if SHARED else own
        queries = _tile(q, tokens, inside, query_head, query_heads, block * BN, N, BN)
        at, mask = _state(entering, index, block * BN, P, N, BP, BN)
        state = tl.load(at, mask=mask, other=0.0)
        weights = tl.dot(dy, tl.trans(values), input_precision=PRECISION) * _within(logs, begun, CHUNK)
        from_start = tl.where(begun == 0, tl.exp(logs), 0.0)
        grad = tl.dot(weights, keys, input_precision=PRECISION)
        grad += tl.dot(dy * from_start[:, None], state, input_precision=PRECISION)
        if SHARED:
            sum_q += grad
        else:
            _store_tile(grad_q, grad, tokens, inside, query_head, query_heads, block * BN, N, BN)
        sum_k += tl.dot(tl.trans(weights), queries, input_precision=PRECISION)
        if own % R == 0:
            at, mask = _state(leaving, index, block * BN, P, N, BP, BN)
            behind = tl.load(at, mask=mask, other=0.0)
            ends = _at_end(logs, CHUNK) - logs
            to_end = tl.where(begun == last, tl.exp(tl.where(begun == last, ends, 0.0)), 0.0)
            sum_k += tl.dot(values * to_end[:, None], behind, input_precision=PRECISION)
    _store_tile(grad_k, sum_k, tokens, inside, group, key_heads, block * BN, N, BN)
    if SHARED:
        _store_tile(grad_q, sum_q, tokens, inside, group, query_heads, block * BN, N, BN)
