"""How well a model predicts a split: per token, per word and per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from data_pipeline.batch import Batch
from data_pipeline.dataset import Split
from data_pipeline.loader import evaluation_batches
from pretrain.config import EvalConfig
from pretrain.data import to_device
from pretrain.distributed import World

LossSum = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(tokens, labels, documents), each [B, T] → summed cross-entropy [nats]."""


@dataclass(frozen=True)
class Evaluation:
    """The result on one split."""

    split: str
    tokens: int
    """Predicted tokens, ends of documents included."""
    loss: float
    """Mean cross-entropy [nats per token]."""
    perplexity: float
    """exp(loss), per token: comparable only between models of one tokenizer."""
    word_perplexity: float
    """exp(total nats / white-space words): comparable across tokenizers."""
    bits_per_byte: float
    """Total bits / UTF-8 bytes of the text: comparable across tokenizers."""
    complete: bool
    """Whether the whole split was read; if not, words and bytes are taken in proportion to the tokens."""

    def as_dict(self) -> dict[str, float | int | str | bool]:
        """Plain values for JSON."""
        return asdict(self)


def accumulate(
    loss_sum: LossSum,
    batches: Iterable[Batch],
    device: torch.device,
    interrupted: Callable[[], bool] = lambda: False,
) -> tuple[float, int]:
    """Summed loss [nats] and predicted tokens over batches; stops early when `interrupted` says so."""
    nats, tokens = 0.0, 0
    for batch in batches:
        nats += float(loss_sum(*to_device(batch, device)))
        tokens += batch.predictions
        if interrupted():
            break
    return nats, tokens


def batches_of(split: Split, seq_len: int, settings: EvalConfig, world: World) -> Iterable[Batch]:
    """This rank's share of the validation batches; every rank gets equally many."""
    return evaluation_batches(
        split, seq_len, settings.batch, world.rank, world.size, limit_sequences=settings.sequences
    )


def summarise(name: str, split: Split, nats: float, tokens: int) -> Evaluation:
    """The figures from a total over `tokens` predictions of the split."""
    predictable = max(1, split.tokens - 1)  # the stream's first token has nothing before it
    share = tokens / predictable
    loss = nats / max(1, tokens)
    return Evaluation(
        split=name,
        tokens=tokens,
        loss=loss,
        perplexity=_exp(loss),
        word_perplexity=_exp(nats / max(1.0, split.words * share)),
        bits_per_byte=nats / math.log(2.0) / max(1.0, split.bytes * share),
        complete=tokens == predictable,
    )


def mix(name: str, parts: Mapping[str, Evaluation], weights: Mapping[str, float]) -> Evaluation:
    """The figures of a mixture: means of its components' losses and bits per byte with these weights.

    Perplexities are weighted as logarithms; `tokens` is the sum, whatever the weights.
    """
    total = sum(weights.get(part, 0.0) for part in parts)
    shares = {part: weights.get(part, 0.0) / total for part in parts}
    loss = sum(shares[part] * found.loss for part, found in parts.items())
    words = sum(shares[part] * math.log(found.word_perplexity) for part, found in parts.items())
    return Evaluation(
        split=name,
        tokens=sum(found.tokens for found in parts.values()),
        loss=loss,
        perplexity=_exp(loss),
        word_perplexity=_exp(words),
        bits_per_byte=sum(shares[part] * found.bits_per_byte for part, found in parts.items()),
        complete=all(found.complete for found in parts.values()),
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
