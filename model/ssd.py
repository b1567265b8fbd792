"""State space duality: the recurrence of Mamba-2 as matrix products over chunks.

A chunk of Q tokens is treated in four steps (arXiv 2405.21060, Section 6 and Listing 1): what its tokens say to
each other, a masked matrix product as in attention; the state that its tokens alone would leave; the state that
enters it, passed from chunk to chunk; and what that state says to its tokens. Decays over a span of tokens are
sums of logarithms over that span alone, never differences of two long sums: those cancel, and would let the
tokens of one document change the rounding in another. Tokens of different documents meet with a factor of 0.

The arithmetic is Q (N + P) + 2 N P multiply-adds a token and head. Autograd saves the decays and products
within chunks (2 H Q numbers a token), the driven inputs in three forms (3 H P) and the states twice (2 H P N / Q);
where that is too much, checkpoint the layer, which is cheap to run again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.chunking import compute_dtype, into_chunks, require_chunk, visible
from model.errors import ModelError
from model.kernels.dispatch import fused


def _segment_decay(log_decay: Tensor, inside: Tensor) -> Tensor:
    """exp(sum of log_decay over (j, i]) [..., Q, Q] at row i and column j, and 0 where not `inside`.

    The sums run down each column from j on. Above the diagonal they are 0, so that nothing overflows there.
    """
    size = log_decay.shape[-1]
    after = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).tril(-1)
    sums = torch.where(after, log_decay.unsqueeze(-1), 0).cumsum(-2)
    return torch.where(
        inside, sums, -math.inf
    ).exp()  # one tensor for the backward pass, where a mask after exp has two


def _pass_states(ends: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Compose chunks: the states that enter them [B, n, G, R, P, N], and the last one."""
    entering = []
    # unbind, because the gradient of each index would be a tensor of the size of all chunks
    for end, kept in zip(ends.unbind(1), decay[..., None, None].unbind(1), strict=True):
        entering.append(state)
        state = torch.addcmul(end, kept, state)
    return torch.stack(entering, dim=1), state


def _chunked(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, starts: Tensor | None, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """`ssd` for widened inputs of more than one token."""
    _, length, heads, channels = x.shape
    groups = b.shape[2]
    split = (groups, heads // groups)
    driven = (
        into_chunks(x * dt.unsqueeze(-1), chunk).transpose(2, 3).contiguous().unflatten(2, split)
    )  # [B, n, G, R, Q, P]
    log_decay = into_chunks(dt * a, chunk).transpose(2, 3).unflatten(2, split)  # [B, n, G, R, Q]
    b, c = (into_chunks(t, chunk).transpose(2, 3) for t in (b, c))  # [B, n, G, Q, N]
    starts = None if starts is None else into_chunks(starts, chunk)
    inside = visible(starts, chunk, x.device)
    decay = _segment_decay(log_decay, inside if starts is None else inside[:, :, None, None])

    scores = c @ b.transpose(-1, -2)
    y = (scores.unsqueeze(3) * decay) @ driven

    leaving = (driven * decay[..., -1, :, None]).transpose(-1, -2).flatten(3, 4)  # [B, n, G, R P, Q]
    ends = (leaving @ b).unflatten(3, (split[1], channels))

    since_entry = log_decay.cumsum(-1).exp()
    if starts is not None:
        no_start = ~starts.cummax(dim=-1).values  # a start cuts the rest of its chunk from the entering state
        since_entry = torch.where(no_start[:, :, None, None], since_entry, 0)
    entering, state = _pass_states(ends, since_entry[..., -1], state.unflatten(1, split))

    heard = c @ entering.flatten(3, 4).transpose(-1, -2)  # [B, n, G, Q, R P]
    y = y + heard.unflatten(-1, (split[1], channels)).transpose(3, 4) * since_entry.unsqueeze(-1)
    y = y.flatten(2, 3).transpose(2, 3).flatten(1, 2)[:, :length]
    return y, state.flatten(1, 2)


def _step(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, starts: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`ssd` for widened inputs of one token: the recurrence itself, without the chunked form's overhead."""
    heads, groups = x.shape[2], b.shape[2]
    decay = torch.exp(dt[:, 0] * a)
    if starts is not None:
        decay = torch.where(starts, 0, decay)
    driven = (x[:, 0] * dt[:, 0].unsqueeze(-1)).unflatten(1, (groups, heads // groups))
    added = (driven.unsqueeze(-1) * b[:, 0, :, None, None]).flatten(1, 2)
    state = torch.addcmul(added, decay[..., None, None], state)
    y = state.unflatten(1, (groups, heads // groups)).flatten(2, 3) @ c[:, 0].unsqueeze(-1)
    return y.reshape(x.shape), state


@fused("ssd")
def ssd(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    starts: Tensor | None = None,
    initial: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t^T and y_t = h_t c_t over the tokens of each row.

    This is the SSD layer of Mamba-2 (arXiv 2405.21060, Section 6) without its
    skip D x. Everything is float32 (float64 stays float64) under any autocast. A row of one token takes the
    recurrence directly, so that a sequence may be read in parts of any length.

    Args:
        x: inputs [B, T, H, P].
        dt: step sizes [B, T, H], at least 0 (after the softplus).
        a: [H], below 0; Mamba-2 learns log(-a).
        b, c: input and output maps [B, T, G, N]; heads h R ... (h + 1) R - 1 share group h, R = H / G.
        starts: boolean [B, T], True at the first token of a document; None is one document a row.
        initial: state [B, H, P, N] before the first token; None is zero.
        chunk: tokens of a chunk, Q. It changes speed, and nothing else beyond rounding.

    Returns:
        y [B, T, H, P] and the last state [B, H, P, N].

    Raises:
        ModelError: the groups do not divide the heads, or `chunk` is below 1.
    """
    batch, length, heads, channels = x.shape
    groups, size = b.shape[2:]
    require_chunk(chunk)
    if heads % groups:
        raise ModelError(f"There are {heads} heads and {groups} groups of B and C; the groups must divide the heads.")
    dtype = compute_dtype(x, dt, a, b, c, initial)
    with torch.autocast(x.device.type, enabled=False):
        x, dt, a, b, c = (t.to(dtype) for t in (x, dt, a, b, c))
        state = x.new_zeros(batch, heads, channels, size) if initial is None else initial.to(dtype)
        if length == 1:
            return _step(x, dt, a, b, c, starts, state)
        return _chunked(x, dt, a, b, c, starts, state, min(chunk, length))


def ssd_reference(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    starts: Tensor | None = None,
    initial: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition of `ssd`: one step at a time, differentiated by autograd. Shapes as there."""
    repeats = x.shape[2] // b.shape[2]
    b, c = (t.repeat_interleave(repeats, dim=2) for t in (b, c))
    state = x.new_zeros(*x[:, 0].shape, b.shape[-1]) if initial is None else initial
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * a)
        if starts is not None:
            decay = decay * ~starts[:, t, None]
        driven = dt[:, t, :, None] * x[:, t]
        state = decay[..., None, None] * state + driven.unsqueeze(-1) * b[:, t].unsqueeze(-2)
        outputs.append((state * c[:, t].unsqueeze(-2)).sum(-1))
    return torch.stack(outputs, dim=1), state
