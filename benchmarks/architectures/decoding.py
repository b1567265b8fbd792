"""How fast a trained model reads a prompt and continues it token by token, and what it remembers meanwhile.

    python -m benchmarks.architectures.decoding RUN LENGTH [--new N] [--chunk N]

One row of LENGTH tokens goes through the cache
in chunks, then N single tokens. Prints a JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from model.cache import Cache
from pretrain.hardware import peak_memory
from pretrain.inference import load


def held(cache: Cache) -> int:
    """Bytes of everything that a cache remembers."""
    memories = [memory for layer in cache.layers for memory in layer.values()]
    tensors = [t for m in memories for t in getattr(m, "tensors", vars(m)).values() if isinstance(t, torch.Tensor)]
    return sum(t.nbytes for t in tensors)


@torch.no_grad()
def measure(run: Path, length: int, new: int, chunk: int) -> dict[str, float]:
    """Seconds, rates and bytes of one prompt and its continuation by `new` tokens."""
    trained = load(run)
    model, device = trained.model, trained.device
    generator = torch.Generator().manual_seed(0)
    vocabulary = trained.corpus.tokenizer().vocab_size
    tokens = torch.randint(0, vocabulary, (1, length + new), generator=generator).to(device)
    model(tokens[:, :chunk])  # the first call of anything is slower
    cache = model.new_cache(1, length + new)
    started = time.perf_counter()
    for piece in tokens[:, :length].split(chunk, dim=1):
        model(piece, cache=cache)
    prefill = time.perf_counter() - started
    seconds = []
    for piece in tokens[:, length:].split(1, dim=1):
        started = time.perf_counter()
        model(piece, cache=cache)
        seconds.append(time.perf_counter() - started)
    return {
        "prefill_tokens_per_s": length / prefill,
        "decode_tokens_per_s": 1 / statistics.median(seconds),
        "cache_bytes": held(cache),
        "peak_memory": peak_memory(),
    }


def main() -> None:
    """Measures one length and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("length", type=int)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=512)
    options = parser.parse_args()
    print(json.dumps(measure(options.run, options.length, options.new, options.chunk)))


if __name__ == "__main__":
    main()
