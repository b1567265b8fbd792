"""Perplexity by position over texts of any length, read in chunks with carried state and bounded memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn import functional as F

from model.cache import Cache
from model.lm import LanguageModel
from pretrain.errors import RunError
from pretrain.hardware import peak_memory
from pretrain.long_text import LongText, Window, windows

LOSS_ROWS = 256
"""Tokens whose log-probabilities are computed at a time."""

MEMORY_SHARE = 0.5
"""A cache that grows with the text may take so much of the free memory."""


@dataclass
class Bin:
    """Predictions of tokens with `first` to `last` tokens before them.

    Attributes:
        first, last: number of tokens before the predicted one, both included; a bin spans an octave.
        tokens: predicted tokens.
        nats: their summed cross-entropy.
        peak_bytes: the most memory that the process had held when the last of them was read.
    """

    first: int
    last: int
    tokens: int = 0
    nats: float = 0.0
    peak_bytes: int = 0

    @property
    def loss(self) -> float:
        """Mean cross-entropy [nats per token]."""
        return self.nats / max(1, self.tokens)


@dataclass
class Reading:
    """What was read, and how well it was predicted.

    Attributes:
        source: the text, in words.
        chunk: tokens of a call.
        documents: texts, each read with a fresh state.
        bins: by position, from the first octave on.
        seconds: wall time, of the model's calls and all that feeds them.
    """

    source: str
    chunk: int
    documents: int = 0
    bins: list[Bin] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Predicted tokens."""
        return sum(entry.tokens for entry in self.bins)

    @property
    def loss(self) -> float:
        """Mean cross-entropy over all of them [nats per token]."""
        return sum(entry.nats for entry in self.bins) / max(1, self.tokens)

    @property
    def peak_bytes(self) -> int:
        """The most memory that the process has held."""
        return max((entry.peak_bytes for entry in self.bins), default=0)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "source": self.source,
            "chunk": self.chunk,
            "documents": self.documents,
            "tokens": self.tokens,
            "loss": self.loss,
            "perplexity": perplexity(self.loss),
            "peak_bytes": self.peak_bytes,
            "seconds": self.seconds,
            "tokens_per_s": self.tokens / max(self.seconds, 1e-9),
            "bins": [{**asdict(b), "loss": b.loss, "perplexity": perplexity(b.loss)} for b in self.bins],
        }

    def add(self, first: int, nats: np.ndarray) -> None:
        """Count the cross-entropies [n] of tokens that have `first`, first + 1, ... tokens before them."""
        octaves = np.frexp(np.arange(first, first + len(nats)))[1] - 1  # floor of the binary logarithm
        peak = peak_memory()
        while len(self.bins) <= octaves[-1]:
            begin = 1 << len(self.bins)
            self.bins.append(Bin(begin, 2 * begin - 1))
        for octave in np.unique(octaves):
            entry, inside = self.bins[octave], octaves == octave
            entry.tokens += int(inside.sum())
            entry.nats += float(nats[inside].sum())
            entry.peak_bytes = peak


def perplexity(loss: float) -> float:
    """exp(loss), or infinity."""
    return math.exp(loss) if loss < 700 else math.inf


@torch.no_grad()
def read(
    model: LanguageModel,
    texts: Iterable[LongText],
    source: str,
    chunk: int,
    limit: int | None = None,
    tell: Callable[[Reading], None] = lambda reading: None,
) -> Reading:
    """Read each text from its first token on, with what the cache remembers of it and nothing else.

    Args:
        model: in evaluation mode.
        texts: each is read with a fresh state.
        source: what they are, in words.
        chunk: tokens of a call, at least 1.
        limit: tokens of a text, at most; None is all of it.
        tell: called when a text reaches a new octave.

    Raises:
        RunError: the model attends to all of its past, and that would not fit; or there is nothing to predict.
    """
    result, started = Reading(source, chunk), time.perf_counter()
    device = model.embedding.weight.device
    for text in texts:
        cache = _cache(model, text, limit)
        result.documents += 1
        for window in windows(text, chunk, limit):
            octaves = len(result.bins)
            result.add(window.start + 1, _cross_entropies(model, cache, window, device))
            if len(result.bins) > octaves:
                tell(result)
    if not result.tokens:
        raise RunError(f"There is nothing to predict in {source}; give a text of at least two tokens.")
    result.seconds = time.perf_counter() - started
    return result


def _cross_entropies(model: LanguageModel, cache: Cache, window: Window, device: torch.device) -> np.ndarray:
    """The cross-entropy [n, nats] of each label of a window; the cache moves on by its inputs."""
    labels = torch.from_numpy(window.labels).to(device)
    logits: Tensor = model(torch.from_numpy(window.inputs)[None].to(device), cache=cache)
    pairs: Sequence[tuple[Tensor, Tensor]] = list(zip(logits[0].split(LOSS_ROWS), labels.split(LOSS_ROWS), strict=True))
    return torch.cat([F.cross_entropy(*pair, reduction="none") for pair in pairs]).double().cpu().numpy()


def _cache(model: LanguageModel, text: LongText, limit: int | None) -> Cache:
    """A cache for the text. Raises RunError where it grows with the text beyond the memory that is free."""
    small = model.new_cache(1, 1)
    if small.capacity is None:
        return small
    length = limit if text.length is None else min(text.length, limit or text.length)
    way_out = "give --window, or train with attention.window, so that the memory stays bounded"
    if length is None:
        raise RunError(
            f"This model attends to all of its past and the text's length is unknown; give --tokens, or {way_out}."
        )
    needed = _size(small) * length
    free = MEMORY_SHARE * _free_memory(model.embedding.weight.device)
    if needed > free:
        raise RunError(
            f"This model attends to all of its past: {length:,} tokens need a cache of {needed / 1e9:,.1f} GB, and "
            f"{free / 1e9:,.1f} GB may be used; read at most --tokens {int(free // _size(small))}, or {way_out}."
        )
    return model.new_cache(1, length)


def _size(cache: Cache) -> int:
    """Bytes of the keys and values of a cache for one token."""
    memories = [memory for layer in cache.layers for memory in layer.values() if memory.capacity is not None]
    return sum(t.nbytes for memory in memories for t in vars(memory).values() if isinstance(t, Tensor))


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
