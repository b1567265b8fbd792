"""Short causal convolution, one filter a channel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model.chunking import compute_dtype
from model.errors import ModelError


def tap_masks(starts: Tensor, width: int) -> list[Tensor]:
    """For lags 1 ... width - 1: may token t draw on token t - lag, that is, is there no start in (t - lag, t].

    Args:
        starts: boolean [B, T], True at the first token of a document.
        width: taps of the filter.

    Returns:
        width - 1 boolean tensors [B, T]. Tokens before the row count as the row's first document.
    """
    length = starts.shape[1]
    blocked = torch.zeros_like(starts)
    masks = []
    for lag in range(1, width):
        blocked = blocked.clone()
        blocked[:, lag - 1 :] |= starts[:, : max(0, length - lag + 1)]
        masks.append(~blocked)
    return masks


def last_inputs(x: Tensor, starts: Tensor | None, state: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """The state of a filter of count + 1 taps before and after the row.

    Args:
        x: [B, T, D].
        starts: boolean [B, T] or None.
        state: [B, count, D] or None, which is zeros.
        count: tokens to remember.

    Returns:
        x with the state before it [B, count + T, D], and its last `count` tokens with zeros in place of those
        that do not belong to the document of the row's last token.
    """
    if state is None:
        state = x.new_zeros(x.shape[0], count, x.shape[2])
    elif state.shape[1] != count:
        raise ModelError(f"The state holds {state.shape[1]} inputs; a filter of {count + 1} taps needs {count}.")
    whole = torch.cat([state.to(x.dtype), x], dim=1)
    after = whole[:, x.shape[1] :]
    if starts is None:
        return whole, after.clone()  # a view would keep the whole row alive
    documents = F.pad(starts, (count, 0)).cumsum(1)
    return whole, torch.where((documents == documents[:, -1:])[:, x.shape[1] :, None], after, 0)


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, starts: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y_t = bias + sum over k of weight_k * x_{t - (W - 1) + k}, for each channel alone.

    This is the convolution before the SSD of Mamba-2 (arXiv 2405.21060, Section 7) and its kin. It is W shifted
    multiply-adds over the row, for small W; no layout is changed. Products and sums are at least float32.
    Autograd saves the inputs with the state before them, and no copy a tap.

    Args:
        x: [B, T, D].
        weight: [D, W], as in `torch.nn.Conv1d`: the last tap is the present token's.
        bias: [D] or None.
        starts: boolean [B, T], True at the first token of a document, which no tap reaches across; None is one
            document a row.
        state: the last W - 1 inputs before the row [B, W - 1, D]; None is zeros.

    Returns:
        y [B, T, D], and the state after the row, with zeros for tokens of earlier documents.

    Raises:
        ModelError: the state has another number of inputs than W - 1.
    """
    dtype = compute_dtype(x, weight)
    length, width = x.shape[1], weight.shape[1]
    whole, after = last_inputs(x.to(dtype), starts, state, width - 1)
    taps = weight.to(dtype).unbind(1)
    y = whole[:, width - 1 :] * taps[-1]
    if bias is not None:
        y = y + bias.to(dtype)
    masks = None if starts is None else tap_masks(starts, width)
    for lag in range(1, width):
        shifted = whole[:, width - 1 - lag : width - 1 - lag + length]
        if masks is None:
            y = torch.addcmul(y, shifted, taps[-1 - lag])
        else:  # masking the product leaves no masked copy of the input behind for the backward pass
            y = y + torch.where(masks[lag - 1].unsqueeze(-1), shifted * taps[-1 - lag], 0)
    return y, after


def causal_conv_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, starts: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition of `causal_conv`: token by token, with a state that a start empties. Shapes as there."""
    batch, length, channels = x.shape
    held = x.new_zeros(batch, weight.shape[1] - 1, channels) if state is None else state
    outputs = []
    for t in range(length):
        if starts is not None:
            held = held * ~starts[:, t, None, None]
        window = torch.cat([held, x[:, t : t + 1]], dim=1)
        y = (window * weight.T).sum(1)
        outputs.append(y if bias is None else y + bias)
        held = window[:, 1:]
    return torch.stack(outputs, dim=1), held
