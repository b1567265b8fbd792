"""How large a benchmark is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """What is measured on.

    Attributes:
        megabytes, vocabulary: of the text, and of the tokenizers trained on it.
        sequences, length: N and T of the token stream that is read.
        shard_bytes: of our dataset's shards; small, because moto copies the whole of one for every range.
        threads: of the remote readers.
        tensors: whether our batches are made torch's; without them, few workers import torch.
        memory_batches: numbers of batches after which the memory is noted.
    """

    megabytes: float = 20.0
    vocabulary: int = 32_000
    sequences: int = 32_768
    length: int = 2_048
    shard_bytes: int = 8_000_000
    threads: int = 4
    tensors: bool = True
    memory_batches: tuple[int, ...] = (1_000, 10_000, 100_000)


QUICK = Sizes(
    megabytes=0.5,
    vocabulary=1_000,
    sequences=2_048,
    length=256,
    shard_bytes=500_000,
    threads=2,
    tensors=False,
    memory_batches=(100, 400, 800),
)
