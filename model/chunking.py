"""What the chunked operations share: their dtype, chunks of tokens, and which tokens share a document."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.errors import ModelError


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float32, or float64 where any tensor is: recurrences lose their slow channels in half precision."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype.to_real()


def into_chunks(x: Tensor, chunk: int) -> Tensor:
    """Cut [B, T, ...] into [B, n, chunk, ...]; zeros (False) fill the last chunk."""
    missing = -x.shape[1] % chunk
    if missing:
        x = F.pad(x, [0, 0] * (x.ndim - 2) + [0, missing])
    return x.unflatten(1, (-1, chunk))


def segment_ids(starts: Tensor) -> Tensor:
    """Number of document starts up to each token, along the last dimension: equal within a document alone."""
    return starts.cumsum(-1, dtype=torch.int32)


def visible(starts: Tensor | None, chunk: int, device: torch.device) -> Tensor:
    """Which token j of a chunk a token i of it may draw on: j <= i, and the same document.

    Args:
        starts: [B, n, chunk], or None for one document.
        chunk: tokens of a chunk.
        device: of the result.

    Returns:
        Boolean [chunk, chunk], or [B, n, chunk, chunk].
    """
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=device).tril()
    if starts is None:
        return causal
    segments = segment_ids(starts)
    return causal & (segments.unsqueeze(-1) == segments.unsqueeze(-2))


def fft_length(least: int) -> int:
    """The smallest 2^k or 3 * 2^k that is at least `least`: lengths with large prime factors are slow."""
    power = 1 << max(1, (least - 1).bit_length())
    return 3 * power // 4 if power >= 4 and 3 * power // 4 >= least else power


def toeplitz(kernel: Tensor, rows: int, columns: int, offset: int = 0) -> Tensor:
    """Matrices whose entry at row s and column i is kernel[i + offset - s], and 0 outside the kernel.

    Args:
        kernel: [H, L].
        rows: above `offset`.
        columns: such that columns + offset >= L.
        offset: lag of the first column on the first row.

    Returns:
        [H, rows, columns].
    """
    padded = F.pad(kernel, (rows - 1 - offset, columns + offset - kernel.shape[-1]))
    return padded.unfold(-1, columns, 1).flip(1)


@dataclass(frozen=True)
class DocumentChunks:
    """Rows cut into chunks that begin at the start of every document, so that no chunk holds two documents.

    An operation whose matrix within a chunk is the same for all chunks (a convolution) needs no mask then,
    and a document gives the same numbers wherever it lies in its row. The price is a copy, and padding of
    half a chunk a document on average; the number of chunks depends on the data, which costs a GPU one
    synchronisation.

    Attributes:
        chunk: tokens of a chunk, C.
        count: chunks of a row, n, the largest of the batch.
        length: tokens of a row, T.
        slots: place of each token among the n * C places of its row [B, T], or None where token t is at t.
        fresh: [B, n], True where a chunk begins a document; None where none does.
        last: chunk of the row's last token [B]; None: n - 1 in every row.
        filled: tokens of that chunk up to the last token [B]; None: all rows T - (n - 1) C.
    """

    chunk: int
    count: int
    length: int
    slots: Tensor | None = None
    fresh: Tensor | None = None
    last: Tensor | None = None
    filled: Tensor | None = None

    @classmethod
    def cut(cls, length: int, starts: Tensor | None, chunk: int) -> DocumentChunks:
        """Chunks of at most `chunk` tokens for rows of `length` tokens with document `starts` [B, T] or None."""
        require_chunk(chunk)
        chunk = min(chunk, length)
        if starts is None:
            return cls(chunk, -(-length // chunk), length)
        positions = torch.arange(length, device=starts.device)
        begins = torch.where(starts, positions, 0).cummax(dim=1).values
        within = (positions - begins) % chunk
        number = (within == 0).cumsum(1) - 1
        count = int(number[:, -1].max()) + 1
        fresh = starts.new_zeros(starts.shape[0], count)
        row, token = torch.nonzero(starts, as_tuple=True)
        fresh[row, number[row, token]] = True
        return cls(chunk, count, length, number * chunk + within, fresh, number[:, -1], within[:, -1] + 1)

    def split(self, x: Tensor) -> Tensor:
        """[B, T, H] into [B, n, C, H]; empty places are 0."""
        if self.slots is None:
            return into_chunks(x, self.chunk)
        places = x.new_zeros(x.shape[0], self.count * self.chunk, x.shape[2])
        places = places.scatter(1, self.slots.unsqueeze(-1).expand_as(x), x)
        return places.unflatten(1, (self.count, self.chunk))

    def join(self, x: Tensor) -> Tensor:
        """[B, n, C, H] back into [B, T, H]."""
        flat = x.flatten(1, 2)
        if self.slots is None:
            return flat[:, : self.length]
        return flat.gather(1, self.slots.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def require_chunk(chunk: int) -> None:
    """Raise ModelError unless `chunk` is at least 1."""
    if chunk < 1:
        raise ModelError(f"chunk is {chunk}; it must be at least 1 token.")
