"""Kernels on a GPU: that they are right there, how fast they are beside others, and what whole training steps gain.

    python benchmarks/gpu.py [PRESET] [--batch 24] [--tokens 1024] [--repeats 20] [--only NAME ...] [--skip-models]
        [--models PRESET ...] [--write docs/kernels.md] [--json FILE]
    TRITON_INTERPRET=1 python benchmarks/gpu.py pha-nano --device cpu --batch 1 --tokens 80 --repeats 1 --skip-models

Each operation runs forward and backward as its definition in eager PyTorch, compiled by torch.compile, as our kernel,
and as other projects' kernels where they are installed (their limits are in `benchmarks/kernels/peers.py`). Medians of
device events around a CUDA graph of both passes, all in one process. Errors are those of the kernel in the case's
dtypes against the definition in float64 on the same numbers, as |difference| / |expected|, the largest of outputs and
gradients. Models are trained for a few steps on random tokens under bf16 autocast with AdamW, with kernels and without.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.cases import Case, attention, cases, floor, gradients
from benchmarks.kernels.peers import peers, versions
from benchmarks.tables import Table
from model.kernels import dispatch
from model.kernels.interpreter import whole_rows
from model.lm import LanguageModel
from model.presets import preset
from pretrain.markdown import check_section, write_section

SECTION = "benchmarks/gpu.py"

MODELS = (
    "pha-125m",
    "pha-180m",
    "transformer-125m",
    "mamba2-125m",
    "hedgehog-125m",
    "gss-125m",
    "h3-125m",
    "taipan-190m",
)


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def times(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median milliseconds of a call."""
    for _ in range(2 if repeats > 1 else 0):
        run()
    found = []
    for _ in range(repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            found.append(begin.elapsed_time(end))
        else:
            started = time.perf_counter()
            run()
            found.append(1e3 * (time.perf_counter() - started))
    return statistics.median(found)


def graphed(run: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """`run` recorded as a CUDA graph, which leaves out what Python takes to launch it; itself on a CPU."""
    if device.type != "cuda":
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # what compiles or tunes itself does so before
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def both_passes(case: Case, run: Callable[..., Sequence[torch.Tensor]]) -> Callable[[], None]:
    """The forward and the backward pass of `run` on the case's leaves, under the autocast of training."""

    def go() -> None:
        device = (*case.leaves, *case.fixed)[0].device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            outputs = run(*case.leaves)
        if case.leaves:
            gradients(case, outputs)

    return go


def error(case: Case) -> float | None:
    """Largest relative error of the kernel's outputs and gradients; None where the case has none to compare."""
    if not case.leaves:
        return None
    dispatch.choose("triton", case.leaves[0].device)
    outputs = case.run(*case.leaves)
    measured = [*outputs, *gradients(case, outputs)]
    wide = [leaf.detach().double().requires_grad_() for leaf in case.leaves]
    double = Case(**{**vars(case), "leaves": wide})
    outputs = double.run(*wide)
    expected = [*outputs, *gradients(double, outputs)]
    worst = 0.0
    for ours, theirs in zip(measured, expected, strict=True):
        if ours is not None and theirs is not None:
            worst = max(worst, ((ours.double() - theirs).norm() / theirs.norm().clamp(min=1e-30)).item())
    return worst


def measure(case: Case, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Times of one case by everyone who has it."""
    found: dict[str, Any] = {"name": case.name, "ms": {}, "failed": {}}
    repeats = options.repeats
    dispatch.choose("reference", device)
    attempt(found, "eager", case, case.run, device, repeats)
    if device.type == "cuda" and case.pointwise and options.compile:
        attempt(found, "torch.compile", case, torch.compile(case.run), device, repeats)
        torch._dynamo.reset()
    dispatch.choose("triton", device)
    attempt(found, "kernel", case, case.run, device, repeats)
    if device.type == "cuda":
        for name, run in peers(case.name).items():
            attempt(found, name, case, run, device, repeats)
        if "kernel" in found["ms"]:
            moved = sum(floor(case, case.run(*case.leaves))[: 2 if case.leaves else 1])
            found["floor_TB_s"] = moved / found["ms"]["kernel"] / 1e9
    return found


def attempt(
    found: dict[str, Any], name: str, case: Case, run: Callable[..., Any], device: torch.device, repeats: int
) -> None:
    """Note a time, or why there is none: other projects' kernels may not bear a shape or a version."""
    try:
        found["ms"][name] = times(graphed(both_passes(case, run), device), device, repeats)
    except Exception as problem:
        found["failed"][name] = f"{type(problem).__name__}: {problem}".splitlines()[0][:200]


def train(name: str, mode: str, device: torch.device, batch: int, tokens: int, steps: int) -> dict[str, Any]:
    """Tokens a second, peak memory and losses of a model's training steps."""
    dispatch.choose(mode, device)
    torch.manual_seed(0)
    config = preset(name)
    model = LanguageModel(config.model_copy(update={"vocab_size": config.vocab_size or 50_257})).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator(device).manual_seed(1)
    text = torch.randint(0, 256, (batch, tokens + 1), generator=generator, device=device)
    documents = (torch.rand(batch, tokens, generator=generator, device=device) < 1 / 500).cumsum(1)
    losses: list[float] = []

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(text[:, :-1], documents, text[:, 1:]) / text[:, 1:].numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    milliseconds = times(step, device, steps)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return {"tokens_per_s": 1e3 * batch * tokens / milliseconds, "peak_bytes": peak, "losses": losses}


def model_steps(name: str, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """A model with and without kernels."""
    entry: dict[str, Any] = {"name": name}
    for mode in ("reference", "triton"):
        try:
            entry[mode] = train(name, mode, device, options.batch, options.tokens, options.steps)
        except Exception as problem:  # one model's failure must not cost the others' figures
            entry[mode] = {"failed": f"{type(problem).__name__}: {problem}".splitlines()[0][:300]}
        if device.type == "cuda":
            torch.cuda.empty_cache()
    say(json.dumps(entry))
    return entry


def keep(found: dict[str, Any], file: Path | None) -> None:
    """Write what has been measured so far: a time limit costs no figures."""
    if file is not None:
        file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if found["cases"]:
        say(json.dumps(found["cases"][-1]))


def tables(found: dict[str, Any]) -> list[Table]:
    """For people."""
    names = list(dict.fromkeys(name for case in found["cases"] for name in case["ms"]))
    speed = Table(
        f"Forward and backward on {found['device']} at the shapes of {found['preset']}, ms",
        ("operation", "error", *names, "floor's TB/s"),
    )
    for case in found["cases"]:
        cells = [None if name not in case["ms"] else f"{case['ms'][name]:.3f}" for name in names]
        rate = case.get("floor_TB_s")
        worst = None if case["error"] is None else f"{case['error']:.1e}"
        speed.rows.append([case["name"], worst, *cells, None if rate is None else f"{rate:.2f}"])
    speed.remarks.append(
        f"{found['batch']} x {found['tokens']} tokens; medians of {found['repeats']} calls; "
        + ", ".join(f"{name} {number}" for name, number in found["versions"].items() if number)
        + ". Floor's TB/s: bytes if each input were read once and each result written once, over the kernel's time."
    )
    result = [speed]
    if found["models"]:
        result.append(_training(found))
    return result


def _training(found: dict[str, Any]) -> Table:
    table = Table(
        f"Training steps on {found['device']}, {found['batch']} x {found['tokens']} tokens, bf16 autocast",
        (
            "model",
            "tokens/s, PyTorch",
            "tokens/s, kernels",
            "gain",
            "peak, PyTorch",
            "peak, kernels",
            "last loss, both",
        ),
    )
    for entry in found["models"]:
        plain, fast = entry["reference"], entry["triton"]
        if "failed" in plain or "failed" in fast:
            table.rows.append([entry["name"], plain.get("failed"), fast.get("failed"), None, None, None, None])
            continue
        rates = plain["tokens_per_s"], fast["tokens_per_s"]
        peaks = (f"{one['peak_bytes'] / 2**30:.1f} GiB" for one in (plain, fast))
        losses = f"{plain['losses'][-1]:.4f}, {fast['losses'][-1]:.4f}"
        gain = f"{rates[1] / rates[0]:.2f}"
        table.rows.append([entry["name"], f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", gain, *peaks, losses])
    return table


def main() -> None:
    """Measures kernels, then models; prints tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="pha-180m")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="with torch.compile")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--skip-models", action="store_true")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.write is not None:
        check_section(options.write, SECTION)
    device = torch.device(options.device)
    found: dict[str, Any] = {
        **{name: getattr(options, name) for name in ("preset", "batch", "tokens", "repeats")},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "versions": versions(),
        "cases": [],
        "models": [],
    }
    half = torch.bfloat16 if device.type == "cuda" else torch.float32
    for name in () if options.skip_models else options.models:
        found["models"].append(model_steps(name, device, options))
        keep(found, options.json)
    config = preset(options.preset)
    small, large = (
        itertools.chain.from_iterable(group(config, *shape, device, half) for group in (cases, attention))
        for shape in ((min(2, options.batch), min(1000, options.tokens)), (options.batch, options.tokens))
    )
    with whole_rows() if device.type == "cpu" else contextlib.nullcontext():
        for case, little in zip(large, small, strict=True):
            if not options.only or case.name in options.only:
                found["cases"].append({**measure(case, device, options), "error": error(little)})
                keep(found, options.json)
    found["broken"] = dispatch.broken()
    keep(found, options.json)
    text = "\n".join(table.markdown() for table in tables(found))
    print(text)
    if options.write is not None:
        write_section(options.write, SECTION, text)


if __name__ == "__main__":
    main()
