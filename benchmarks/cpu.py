"""Training on a CPU: how much of the machine's matrix products it reaches, long texts, and memory.

    python benchmarks/cpu.py [--steps 7] [--lengths 4096 8192] [--threads N] [--write docs/kernels.md] [--json]

- Speed: a PHA of about 4 million parameters at 512 tokens, as it is and compiled (`train.compile`). Its model FLOPs
  (`model/flops.py`, from the bottom up) times its tokens/s, over the rate of a float32 product of square matrices, all
  measured in turn on the same threads.
- Long texts: the same PHA beside attention alone (`branches=[attention]`) with as many layers as give it the nearest
  number of parameters, step by step in turn; one document a row.
- Memory: what a step needs beyond what the process held before it, in processes of their own: all activations and all
  logits kept, against blocks computed again and the loss taken in chunks.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.machine import describe
from benchmarks.process import ask
from benchmarks.tables import Table
from model.config import ModelConfig
from model.flops import flops_per_token
from model.lm import LanguageModel
from model.params import count_parameters
from model.presets import preset
from pretrain.hardware import keep_memory, peak_memory
from pretrain.markdown import check_section, write_section

SECTION = "benchmarks/cpu.py"

TOKENS = 8192
"""Of a step."""

SIZE = 1024
"""Rows and columns of the matrices."""


def pha() -> ModelConfig:
    """About 4 million parameters."""
    return preset("pha-tiny").model_copy(update={"vocab_size": 4096, "d_model": 192})


def attention_alone(like: ModelConfig) -> ModelConfig:
    """PHA without its other branches, as deep as brings it nearest to the parameters of `like`."""
    wanted = count_parameters(like)["total"]
    options = [
        like.model_copy(update={"branches": ("attention",), "n_layers": layers})
        for layers in range(like.n_layers, 4 * like.n_layers)
    ]
    return min(options, key=lambda config: abs(count_parameters(config)["total"] - wanted))


class Training:
    """A model and what its steps are made of."""

    def __init__(self, config: ModelConfig, length: int, *, naive: bool = False, recompute: bool = False) -> None:
        torch.manual_seed(0)
        self.config, self.naive = config, naive
        self.model = LanguageModel(config)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        rows = max(1, TOKENS // length)
        self.text = torch.randint(0, config.vocab_size or 2, (rows, length + 1))
        if recompute:
            self.model.set_recompute(functools.partial(checkpoint, use_reentrant=False), 1)

    def step(self) -> None:
        """One optimizer step."""
        tokens, labels = self.text[:, :-1], self.text[:, 1:]
        if self.naive:
            loss = F.cross_entropy(self.model(tokens).flatten(0, 1), labels.flatten())
        else:
            loss = self.model(tokens, None, labels) / labels.numel()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def speed(steps: int) -> dict[str, Any]:
    """PHA's rate beside that of matrix products, in turn."""
    config, length = pha(), 512
    trainings, a = {"eager": Training(config, length), "compiled": Training(config, length)}, torch.randn(SIZE, SIZE)
    trainings["compiled"].model.compile_blocks()
    products: list[float] = []
    took: dict[str, list[float]] = {name: [] for name in trainings}
    for _ in range(steps + 1):
        product = statistics.median(seconds(lambda: a @ a) for _ in range(20))
        products.append(2 * SIZE**3 / product)
        for name, training in trainings.items():
            took[name].append(seconds(training.step))
    rates = {name: TOKENS / statistics.median(durations[1:]) for name, durations in took.items()}
    flops, peak = flops_per_token(config, length)["total"], statistics.median(products[1:])  # the first allocates
    return {
        "parameters": count_parameters(config)["total"],
        "flops_per_token": flops,
        "matmul_flops": peak,
        "tokens_per_s": rates,
        "share": {name: rate * flops / peak for name, rate in rates.items()},
        "first_step_s": {name: durations[0] for name, durations in took.items()},
    }


def long_texts(length: int, steps: int) -> dict[str, Any]:
    """Tokens a second of PHA and of attention alone, in turn."""
    configs = {"pha": pha(), "attention": attention_alone(pha())}
    trainings = {name: Training(config, length) for name, config in configs.items()}
    took: dict[str, list[float]] = {name: [] for name in configs}
    for step in range(steps + 1):
        for name, training in trainings.items():
            duration = seconds(training.step)
            if step:
                took[name].append(duration)
    rows = max(1, TOKENS // length)
    found: dict[str, Any] = {"length": length}
    for name, config in configs.items():
        found[name] = {
            "parameters": count_parameters(config)["total"],
            "layers": config.n_layers,
            "tokens_per_s": rows * length / statistics.median(took[name]),
        }
    found["ratio"] = found["pha"]["tokens_per_s"] / found["attention"]["tokens_per_s"]
    return found


def memory(variant: str) -> dict[str, Any]:
    """Bytes that two steps need beyond what the process held when the model was made."""
    naive = variant == "naive"
    training = Training(pha(), 512, naive=naive, recompute=not naive)
    before = peak_memory()
    for _ in range(2):
        training.step()
    return {"bytes": peak_memory() - before}


def tables(found: dict[str, Any]) -> list[Table]:
    """For people."""
    one = found["speed"]
    fast = Table(
        "A PHA of 4 million parameters at 512 tokens on a CPU",
        ("blocks", "tokens/s", "GFLOP/s", "matrix product, GFLOP/s", "share", "first step, s"),
    )
    for name, rate in one["tokens_per_s"].items():
        reached, peak = rate * one["flops_per_token"] / 1e9, one["matmul_flops"] / 1e9
        share, first = one["share"][name], one["first_step_s"][name]
        fast.rows.append([name, f"{rate:,.0f}", f"{reached:.1f}", f"{peak:.1f}", f"{share:.1%}", f"{first:.1f}"])
    machine = found["machine"]
    fast.remarks.append(
        f"{machine['cores']} cores of {machine['processor']}, {found['threads']} threads; medians of {found['steps']} "
        f"steps of {TOKENS:,} tokens, forward, backward and AdamW, in turn; products of {SIZE} x {SIZE}. "
        f"{one['parameters']:,} parameters, {one['flops_per_token'] / 1e6:.1f} MFLOP a token. The first step compiles."
    )
    long = Table(
        "Long texts on a CPU, beside attention alone with as many parameters",
        ("tokens a row", "PHA, tokens/s", "attention alone, tokens/s", "ratio"),
    )
    for entry in found["long"]:
        rates = (f"{entry[name]['tokens_per_s']:,.0f}" for name in ("pha", "attention"))
        long.rows.append([f"{entry['length']:,}", *rates, f"{entry['ratio']:.2f}"])
    shapes = ", ".join(
        f"{name}: {found['long'][0][name]['parameters']:,} parameters in {found['long'][0][name]['layers']} layers"
        for name in ("pha", "attention")
    )
    long.remarks.append(f"{shapes}; steps in turn, medians.")
    kept, again = found["memory"]["naive"]["bytes"], found["memory"]["chunked"]["bytes"]
    least = Table("Memory of a training step on a CPU, MB", ("all kept", "computed again, loss in chunks", "share"))
    least.rows.append([f"{kept / 1e6:,.0f}", f"{again / 1e6:,.0f}", f"{again / kept:.0%}"])
    least.remarks.append("Beyond what the process held when the model was made; 16 x 512 tokens.")
    return [fast, long, least]


def main() -> None:
    """Measures all three; prints tables or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--memory", choices=["naive", "chunked"], help="measure this alone, in this process")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_memory()  # as training on a CPU does
    if options.memory:
        print(json.dumps(memory(options.memory)))
        return
    if options.write is not None:
        check_section(options.write, SECTION)
    found = {
        "machine": describe(),
        "threads": torch.get_num_threads(),
        "steps": options.steps,
        "memory": {name: ask("benchmarks.cpu", "--memory", name) for name in ("naive", "chunked")},
        "speed": speed(options.steps),
        "long": [long_texts(length, max(2, options.steps // 2)) for length in options.lengths],
    }
    text = "\n".join(table.markdown() for table in tables(found))
    print(json.dumps(found) if options.json else text)
    if options.write is not None:
        write_section(options.write, SECTION, text)


if __name__ == "__main__":
    main()
