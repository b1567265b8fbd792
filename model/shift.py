"""The shift state space of H3: one learned filter of N taps a channel.

A shift matrix as A and the first unit vector as B make the state the last N inputs, and C a filter over them
(arXiv 2212.14052, Section 3.1). Rows are cut into chunks of C tokens that begin at document starts, and each chunk
with the N - 1 inputs before it is convolved by a short FFT (overlap-save: what wraps around falls on those N - 1), or
multiplied with one matrix. Other documents are zeros before a transform, which would spread their rounding otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model.chunking import DocumentChunks, compute_dtype, fft_length, require_chunk, toeplitz
from model.conv import last_inputs


def _past(chunks: DocumentChunks, inputs: Tensor, state: Tensor) -> Tensor:
    """The N - 1 inputs before each chunk [B, n, N - 1, D], zeros where it begins a document.

    A chunk is at least N - 1 long unless it is the whole row, and then every further chunk begins a document.
    """
    count = state.shape[1]
    earlier = inputs[:, :-1]
    if earlier.shape[2] >= count:
        earlier = earlier[:, :, earlier.shape[2] - count :]
    else:
        earlier = F.pad(earlier, (0, 0, count - earlier.shape[2], 0))
    past = torch.cat([state.unsqueeze(1), earlier], dim=1)
    return past if chunks.fresh is None else torch.where(chunks.fresh[..., None, None], 0, past)


def _transforms(windows: Tensor, kernel: Tensor, points: int) -> Tensor:
    """Windows [B, n, N - 1 + C, D] under the filter [D, N], by FFTs of `points`: outputs [B, n, C, D]."""
    taps, end = kernel.shape[1], windows.shape[2]
    spectrum = torch.fft.rfft(windows.transpose(2, 3), n=points) * torch.fft.rfft(kernel, n=points)
    return torch.fft.irfft(spectrum, n=points)[..., taps - 1 : end].transpose(2, 3)


def _products(windows: Tensor, kernel: Tensor) -> Tensor:
    """`_transforms` as one matrix product a channel."""
    past, end = kernel.shape[1] - 1, windows.shape[2]
    rows = windows.permute(3, 0, 1, 2).flatten(1, 2)  # [D, B n, N - 1 + C]
    y = torch.bmm(rows, toeplitz(kernel, end, end - past, offset=past))
    return y.unflatten(1, windows.shape[:2]).permute(1, 2, 3, 0)


def shift_ssm(
    x: Tensor,
    weight: Tensor,
    skip: Tensor | None = None,
    starts: Tensor | None = None,
    state: Tensor | None = None,
    chunk: int = 128,
    causal_bits: bool = False,
) -> tuple[Tensor, Tensor]:
    """y_t = skip x_t + sum over lags l < N of weight_l x_{t-l}, for each channel alone.

    Everything is float32 (float64 stays float64) under any autocast. A row of one token
    is a sum of N products. Autograd saves the windows and their spectra, 2 (C + N) / C numbers a token
    and channel.

    Args:
        x: [B, T, D].
        weight: C of the shift SSM [D, N]; the first tap is the present token's (`model.conv` has it last).
        skip: D [D] or None.
        starts: boolean [B, T], True at the first token of a document, which no tap reaches across; None is one
            document a row.
        state: the last N - 1 inputs before the row [B, N - 1, D]; None is zeros.
        chunk: tokens of a chunk, C; it is raised to a length that suits the FFT and to N - 1.
        causal_bits: a later token changes no bit of an earlier output. An FFT spreads its rounding over the chunk;
            this takes one product with a Toeplitz matrix [C + N - 1, C] a channel instead, half again as slow at
            N = 64 on a CPU.

    Returns:
        y [B, T, D], and the state after the row, with zeros for tokens of earlier documents.

    Raises:
        ModelError: the state has another number of inputs than N - 1, or `chunk` is below 1.
    """
    require_chunk(chunk)
    dtype = compute_dtype(x, weight, skip)
    length, taps = x.shape[1], weight.shape[1]
    with torch.autocast(x.device.type, enabled=False):
        x, kernel = x.to(dtype), weight.to(dtype)
        whole, after = last_inputs(x, starts, state, taps - 1)
        if length == 1:
            if starts is not None:
                whole = torch.cat([torch.where(starts.unsqueeze(-1), 0, whole[:, :-1]), x], dim=1)
            y = (whole * kernel.T.flip(0)).sum(1, keepdim=True)
        else:
            size = min(max(chunk, taps - 1), length)
            points = size + taps - 1 if causal_bits else fft_length(size + taps - 1)
            chunks = DocumentChunks.cut(length, starts, points - (taps - 1))
            inputs = chunks.split(x)
            windows = torch.cat([_past(chunks, inputs, whole[:, : taps - 1]), inputs], dim=2)
            y = chunks.join(_products(windows, kernel) if causal_bits else _transforms(windows, kernel, points))
        return y if skip is None else y + skip.to(dtype) * x, after


def shift_ssm_reference(
    x: Tensor, weight: Tensor, skip: Tensor | None = None, starts: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition of `shift_ssm`: the state is shifted token by token. Shapes as there."""
    batch, _, channels = x.shape
    held = x.new_zeros(batch, weight.shape[1] - 1, channels) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        if starts is not None:
            held = held * ~starts[:, t, None, None]
        window = torch.cat([held, x[:, t : t + 1]], dim=1)
        y = (window * weight.T.flip(0)).sum(1)
        outputs.append(y if skip is None else y + skip * x[:, t])
        held = window[:, 1:]
    return torch.stack(outputs, dim=1), held
