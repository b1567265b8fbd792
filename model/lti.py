"""Diagonal linear time-invariant state spaces: S4D, DSS, and with them GSS and the diagonal SSM of H3.

Each channel has N complex states, h_t = exp(log_a) h_{t-1} + u_t, read out as y_t = Re(sum of weight * h_t) +
skip u_t. Input and output maps are one product, `weight`, because only their product shapes y. As a convolution,
y = K * u with K_l = Re(sum of weight * a^l). There are two forms:

- `lti`: chunks of C tokens that begin at document starts (`model.chunking.DocumentChunks`), so that one Toeplitz
  matrix of K_0 ... K_{C-1} per channel serves all chunks with no mask; states pass from chunk to chunk. This
  costs C + 4 N multiply-adds a token and channel, all in matrix products, takes document starts and an initial
  state, and gives the last state. Autograd saves about 1 + 6 N / C numbers a token and channel,
  and tables of 2 N (C + 1) + C^2 numbers a channel (of 2 N (C + 1) in all, and C^2, where channels share Lambda).
- `lti_fft`: one FFT of at least 2 T - 1 points (O(log T) a token), for whole rows of one document.

On a CPU core with H = 256 and N = 64 states a channel the two are level: forward and backward 87 and 70 ms at
T = 512, 118 and 117 ms at 2,048, 290 and 401 ms at 8,192 (116, 172 and 429 ms with a document start every 300
tokens). With N = 512 states and a shared Lambda the FFT is twice as fast (437 and 205 ms at 2,048).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.chunking import DocumentChunks, compute_dtype, fft_length, toeplitz

KERNEL_BLOCK = 64
"""Lags of the kernel that one table of powers covers; a longer kernel multiplies two short tables."""


def s4d_lin(size: int) -> Tensor:
    """Initial Lambda [size] of S4D-Lin, -1/2 + i pi n, one of each conjugate pair (arXiv 2206.11893)."""
    return torch.complex(torch.full((size,), -0.5), math.pi * torch.arange(size, dtype=torch.float32))


def log_uniform_steps(
    channels: int, low: float = 1e-3, high: float = 1e-1, generator: torch.Generator | None = None
) -> Tensor:
    """Initial steps Delta [channels], log-uniform in [low, high]: memories of about 2 / Delta tokens."""
    uniform = torch.rand(channels, generator=generator)
    return torch.exp(math.log(low) + uniform * (math.log(high) - math.log(low)))


def complex_lambda(log_rate: Tensor, frequency: Tensor) -> Tensor:
    """Lambda = -exp(log_rate) + i frequency, whose real part stays below 0 whatever is learned."""
    dtype = compute_dtype(log_rate, frequency)
    return torch.complex(-log_rate.to(dtype).exp(), frequency.to(dtype))


def _expm1(z: Tensor) -> Tensor:
    """exp(z) - 1 of complex z without cancellation near 0: steps of 1e-3 would lose three digits."""
    real, imaginary = z.real, z.imag
    part = torch.expm1(real)
    return torch.complex(part * imaginary.cos() - 2 * (imaginary / 2).sin().square(), (part + 1) * imaginary.sin())


def zero_order_hold(
    lam: Tensor, delta: Tensor, b: Tensor | None, c: Tensor, pairs: bool = True
) -> tuple[Tensor, Tensor]:
    """Discretise h' = Lambda h + B u, y = Re(C h) with inputs held for a step Delta (arXiv 2206.11893).

    DSS as in GSS (arXiv 2206.13947) is delta = 1 of shape [1], b = None and a shared Lambda.

    Args:
        lam: Lambda [H or 1, N] complex, real parts below 0.
        delta: steps [H or 1], above 0.
        b: input map [H or 1, N] complex; None is ones.
        c: output map [H, N] complex.
        pairs: the N states stand for conjugate pairs, and their sum is twice the real part.

    Returns:
        log_a = Delta Lambda [H or 1, N] and weight = C B (exp(log_a) - 1) / Lambda [H, N], complex, of `lti`.
    """
    log_a = delta.unsqueeze(-1).to(compute_dtype(delta, lam.real)) * lam
    weight = c * (_expm1(log_a) / lam)
    if b is not None:
        weight = weight * b
    return log_a, 2 * weight if pairs else weight


def _powers(log_a: Tensor, exponents: Tensor) -> Tensor:
    """a^e [H or 1, N, E] for the exponents [E]."""
    return torch.exp(log_a.unsqueeze(-1) * exponents)


def _power_table(log_a: Tensor, count: int) -> Tensor:
    """a^0 ... a^(count - 1) [H or 1, N, count], as products of two short tables: exponentials are slow."""
    near = max(1, math.isqrt(count))
    far = -(-count // near)
    steps = torch.arange(max(near, far), device=log_a.device, dtype=log_a.real.dtype)
    table = _powers(log_a, steps[:far] * near).unsqueeze(-1) * _powers(log_a, steps[:near]).unsqueeze(-2)
    return table.flatten(-2)[..., :count]


def _real_rows(z: Tensor) -> Tensor:
    """[H, N, E] complex to [H, 2 N, E] real: rows real part of n, minus imaginary part of n, in turn.

    The product of the real view (Re, Im, ...) of states with it is the real part of the complex product.
    """
    return torch.stack([z.real, -z.imag], dim=2).flatten(1, 2)


def _per_channel(x: Tensor, matrix: Tensor) -> Tensor:
    """[H, M, K] times [H or 1, K, L]; a matrix that all channels share is one large product."""
    if matrix.shape[0] == 1:
        return x @ matrix[0]
    return torch.bmm(x, matrix)


def lti_kernel(log_a: Tensor, weight: Tensor, length: int) -> Tensor:
    """K_l = Re(sum over n of weight_n a_n^l) for l below `length` [H, length] (arXiv 2206.11893)."""
    block = min(KERNEL_BLOCK, length)
    count = -(-length // block)
    far = weight.unsqueeze(1) * _power_table(log_a * block, count).transpose(1, 2)  # [H, count, N]
    near = _real_rows(_power_table(log_a, block))
    return _per_channel(torch.view_as_real(far).flatten(2), near).flatten(1)[:, :length]


def _pass_states(ends: Tensor, decay: Tensor, fresh: Tensor | None, state: Tensor) -> Tensor:
    """States [B, n, H, N] that enter the chunks, which leave `ends` [B, n, H, N] from a zero start."""
    entering = []
    fresh_each = [None] * ends.shape[1] if fresh is None else fresh[..., None, None].unbind(1)
    for end, begins in zip(ends.unbind(1), fresh_each, strict=True):
        if begins is not None:
            state = torch.where(begins, 0, state)
        entering.append(state)
        state = end + decay * state
    return torch.stack(entering, dim=1)


def _states_after(rows: Tensor, powers: Tensor) -> Tensor:
    """States [H, M, N] that rows of C tokens [H, M, C] leave from a zero start, after their last token.

    `powers` [H or 1, 2 N, C + 1] are the rows of `_real_rows`, which give the conjugates.
    """
    parts = _per_channel(rows.flip(-1), powers[..., :-1].transpose(-1, -2))
    return torch.view_as_complex(parts.unflatten(-1, (-1, 2))).conj()


def _last_state(u: Tensor, log_a: Tensor, powers: Tensor, entering: Tensor, chunks: DocumentChunks) -> Tensor:
    """State [B, H, N] after the last token, which may lie anywhere in its chunk. `powers` as in `_states_after`."""
    size = chunks.chunk
    window = u[:, u.shape[1] - size :]
    if chunks.filled is None or chunks.last is None:
        filled = torch.full((u.shape[0],), chunks.length - (chunks.count - 1) * size, device=u.device)
        before = entering[:, -1]
    else:
        filled = chunks.filled
        before = entering[torch.arange(u.shape[0], device=u.device), chunks.last]
    inside = torch.arange(size, device=u.device) >= size - filled.unsqueeze(-1)
    window = torch.where(inside.unsqueeze(-1), window, 0)
    decay = _powers(log_a, filled.to(u.dtype)).permute(2, 0, 1)  # [B, H or 1, N]
    return decay * before + _states_after(window.permute(2, 0, 1), powers).transpose(0, 1)


def _chunked(
    u: Tensor, log_a: Tensor, weight: Tensor, skip: Tensor | None, state: Tensor, chunks: DocumentChunks
) -> tuple[Tensor, Tensor]:
    """`lti` for widened inputs."""
    batch, size = u.shape[0], chunks.chunk
    powers = _real_rows(_power_table(log_a, size + 1))  # [H or 1, 2 N, C + 1]
    rows = chunks.split(u).permute(3, 0, 1, 2).flatten(1, 2)  # [H, B n, C]
    kernel = _per_channel(torch.view_as_real(weight).flatten(1).unsqueeze(1), powers[..., :size])[:, 0]
    if skip is not None:
        kernel = torch.cat([kernel[:, :1] + skip.unsqueeze(-1), kernel[:, 1:]], dim=1)
    y = torch.bmm(rows, toeplitz(kernel, size, size))

    ends = _states_after(rows, powers).unflatten(1, (batch, chunks.count)).permute(1, 2, 0, 3)
    entering = _pass_states(ends, torch.exp(log_a * size), chunks.fresh, state)
    heard = torch.view_as_real((entering * weight).permute(2, 0, 1, 3).contiguous()).flatten(3).flatten(1, 2)
    y = y + _per_channel(heard, powers[..., 1:])
    y = chunks.join(y.unflatten(1, (batch, chunks.count)).permute(1, 2, 3, 0))
    return y, _last_state(u, log_a, powers, entering, chunks)


def _step(
    u: Tensor, log_a: Tensor, weight: Tensor, skip: Tensor | None, starts: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`lti` for widened inputs of one token."""
    if starts is not None:
        state = torch.where(starts.unsqueeze(-1), 0, state)
    state = log_a.exp() * state + u[:, 0].unsqueeze(-1)
    y = (weight * state).real.sum(-1)
    if skip is not None:
        y = y + skip * u[:, 0]
    return y.unsqueeze(1), state


def _widen(
    u: Tensor, log_a: Tensor, weight: Tensor, skip: Tensor | None, initial: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """All inputs in one precision, at least float32, with complex partners."""
    dtype = compute_dtype(u, log_a.real, weight.real, skip, None if initial is None else initial.real)
    wide = dtype.to_complex()
    state = None if initial is None else initial.to(wide)
    return u.to(dtype), log_a.to(wide), weight.to(wide), None if skip is None else skip.to(dtype), state


def lti(
    u: Tensor,
    log_a: Tensor,
    weight: Tensor,
    skip: Tensor | None = None,
    starts: Tensor | None = None,
    initial: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run h_t = exp(log_a) h_{t-1} + u_t, y_t = Re(sum of weight * h_t) + skip u_t for each channel, in chunks.

    This is S4D (arXiv 2206.11893), and with a Lambda that all channels share the DSS of GSS (arXiv 2206.13947).
    Everything is float32 (float64 stays float64) under any autocast. A row of one token takes the recurrence
    directly, so that a sequence may be read in parts of any length.

    Args:
        u: inputs [B, T, H].
        log_a: logarithms of the decays [H or 1, N] complex, real parts below 0 (`zero_order_hold`).
        weight: input map times output map [H, N] complex, with the factor 2 of conjugate pairs.
        skip: D [H] or None.
        starts: boolean [B, T], True at the first token of a document; None is one document a row.
        initial: state [B, H, N] complex before the first token; None is zero.
        chunk: tokens of a chunk, C. It changes speed, and nothing else beyond rounding.

    Returns:
        y [B, T, H], and the last state [B, H, N] complex.

    Raises:
        ModelError: `chunk` is below 1.
    """
    u, log_a, weight, skip, state = _widen(u, log_a, weight, skip, initial)
    if state is None:
        state = weight.new_zeros(u.shape[0], *weight.shape)
    with torch.autocast(u.device.type, enabled=False):
        if u.shape[1] == 1:
            return _step(u, log_a, weight, skip, starts, state)
        return _chunked(u, log_a, weight, skip, state, DocumentChunks.cut(u.shape[1], starts, chunk))


def fft_convolve(u: Tensor, kernel: Tensor) -> Tensor:
    """y_t = sum over l of kernel_l u_{t-l} for each channel: u [B, T, H], kernel [H, L], y [B, T, H].

    The transforms have room for all of T + L - 1, so that nothing wraps around; they are at least float32.
    """
    dtype = compute_dtype(u, kernel)
    length = u.shape[1]
    points = fft_length(length + kernel.shape[1] - 1)
    with torch.autocast(u.device.type, enabled=False):
        spectrum = torch.fft.rfft(u.to(dtype).transpose(1, 2), n=points) * torch.fft.rfft(kernel.to(dtype), n=points)
        return torch.fft.irfft(spectrum, n=points)[..., :length].transpose(1, 2)


def lti_fft(u: Tensor, log_a: Tensor, weight: Tensor, skip: Tensor | None = None) -> Tensor:
    """`lti` for rows of one document without states, as one convolution by FFT. Arguments and y as there."""
    u, log_a, weight, skip, _ = _widen(u, log_a, weight, skip, None)
    with torch.autocast(u.device.type, enabled=False):
        kernel = lti_kernel(log_a, weight, u.shape[1])
    y = fft_convolve(u, kernel)
    return y if skip is None else y + skip * u


def lti_reference(
    u: Tensor,
    log_a: Tensor,
    weight: Tensor,
    skip: Tensor | None = None,
    starts: Tensor | None = None,
    initial: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition of `lti`: one step at a time, differentiated by autograd. Shapes as there."""
    state = weight.new_zeros(u.shape[0], *weight.shape) if initial is None else initial
    outputs = []
    for t in range(u.shape[1]):
        if starts is not None:
            state = state * ~starts[:, t, None, None]
        state = log_a.exp() * state + u[:, t].unsqueeze(-1)
        y = (weight * state).sum(-1).real
        outputs.append(y if skip is None else y + skip * u[:, t])
    return torch.stack(outputs, dim=1), state
