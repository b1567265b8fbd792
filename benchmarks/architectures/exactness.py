"""How far a trained model's float32 results are from float64 ones.

    python -m benchmarks.architectures.exactness RUN [--length N]

On packed validation text: the logits of one parallel call in float32 against those of the same weights in float64,
where each document is read token by token from an empty cache, so that every recurrence takes its defining step; and
the loss's gradients in float32 against those in float64, both by the parallel form. Prints a JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from torch import Tensor

from model.cache import States
from model.lm import LanguageModel
from pretrain.config import EvalConfig
from pretrain.data import to_device
from pretrain.distributed import World
from pretrain.evaluate import batches_of
from pretrain.inference import load

#: Of these first sequences of the validation split the one with most documents is taken.
SEQUENCES = 64


@torch.no_grad()
def stepwise(model: LanguageModel, tokens: Tensor, documents: Tensor) -> Tensor:
    """Logits [1, T, V] of a float64 model for tokens [1, T], one call a token, with a fresh cache a document."""
    logits, cache = [], None
    for t in range(tokens.shape[1]):
        if cache is None or documents[0, t] != documents[0, t - 1]:
            cache = model.new_cache(1, tokens.shape[1], torch.float64)
            for memory in (m for layer in cache.layers for m in layer.values() if isinstance(m, States)):
                memory.tensors = {name: value.double() for name, value in memory.tensors.items()}
        logits.append(model(tokens[:, t : t + 1], cache=cache))
    return torch.cat(logits, dim=1)


def gradients(model: LanguageModel, tokens: Tensor, documents: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Of the summed loss, by parameter."""
    model.zero_grad()
    model(tokens, documents, labels).backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def measure(run: Path, length: int) -> dict[str, float]:
    """The largest differences: of logits over the largest logit, of a parameter's gradient over its norm."""
    trained = load(run)
    single, double = trained.model, copy.deepcopy(trained.model).double()
    split = next(iter(trained.corpus.splits("validation").values()))
    candidates = batches_of(split, length, EvalConfig(sequences=SEQUENCES, batch=1), World())
    batch = max(candidates, key=lambda batch: int(batch.documents.max()))
    tokens, labels, documents = to_device(batch, trained.device)
    with torch.no_grad():
        logits = single(tokens, documents).double()
    expected = stepwise(double, tokens, documents)
    found = gradients(single, tokens, documents, labels)
    exact = gradients(double, tokens, documents, labels)
    return {
        "documents": len(documents.unique()),
        "logits": float((logits - expected).abs().max() / expected.abs().max()),
        "gradients": max(
            float((found[name] - value).norm() / value.norm()) for name, value in exact.items() if value.norm() > 0
        ),
    }


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--length", type=int, default=257)
    options = parser.parse_args()
    print(json.dumps(measure(options.run, options.length)))


if __name__ == "__main__":
    main()
