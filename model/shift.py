"""The shift state space of H3: one learned filter of N taps a channel.

A shift matrix as A and the first unit vector as B make the state the last N inputs, and C a filter over them
(arXiv 2212.14052, Section 3.1). Rows are cut into chunks of C tokens that begin at document starts, and each chunk
with the N - 1 inputs before it is convolved by a short FFT (overlap-save: what wraps around falls on those N - 1).
Other documents are zeros before the transform, which would spread their rounding otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model.chunking import DocumentChunks, compute_dtype, fft_length, require_chunk
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


def shift_ssm(
    x: Tensor,
    weight: Tensor,
    skip: Tensor | None = None,
    starts: Tensor | None = None,
    state: Tensor | None = None,
    chunk: int = 128,
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
            points = fft_length(min(max(chunk, taps - 1), length) + taps - 1)
            chunks = DocumentChunks.cut(length, starts, points - (taps - 1))
            inputs = chunks.split(x)
            windows = torch.cat([_past(chunks, inputs, whole[:, : taps - 1]), inputs], dim=2).transpose(2, 3)
            spectrum = torch.fft.rfft(windows, n=points) * torch.fft.rfft(kernel, n=points)
            y = torch.fft.irfft(spectrum, n=points)[..., taps - 1 : taps - 1 + chunks.chunk]
            y = chunks.join(y.transpose(2, 3))
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
