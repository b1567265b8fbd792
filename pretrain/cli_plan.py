"""`pha plan`: what a run will need, before a node is paid for; a part of the composition root."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pretrain.cli_output import Json, print_json, print_table

if TYPE_CHECKING:
    from pretrain.plan import Plan

Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides such as train.steps=500.")]

_WORDS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer (moments, fp32 copies)",
    "buffers": "buffers of collectives",
    "activations": "activations",
    "head": "logits, loss and their gradients",
    "batch": "data of the batch",
}


def plan(
    config: Annotated[Path, typer.Argument(help="A YAML file, for example configs/openwebtext-pha-125m.yaml.")],
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Short for cluster.nodes.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="Short for cluster.gpus_per_node; 0 plans for CPUs.")] = None,
    gpu: Annotated[str | None, typer.Option(help="h100, h200, b200, a100, a100-40gb, l40s, l4, mi300x or cpu.")] = None,
    as_json: Json = False,
) -> None:
    """What a run will need, before a node is paid for: memory of a rank by part, time, data, checkpoints.

    No weights are made and no GPU is needed; where the data is not here, it says what it could not check. Memory is
    scored against measurement and time is a range: docs/plan.md.
    """
    from pretrain import config_file
    from pretrain.gpus import find
    from pretrain.plan import make

    given = [f"cluster.nodes={nodes}"] if nodes else []
    given += [f"cluster.gpus_per_node={gpus}"] if gpus is not None else []
    resolved = config_file.load(config, [*(overrides or ()), *given])
    wanted = gpu or ("h100" if resolved.cluster.gpus_per_node else "cpu")
    device = None if wanted.lower() == "cpu" else find(wanted)
    found = make(resolved, device, _rates)
    if gpu is None and device is not None:
        found.notes.append("No --gpu was named: the plan is for an H100.")
    if as_json:
        print_json(found.as_dict())
    else:
        _print(found, str(config))


def _rates() -> tuple[float, float]:
    """FLOP/s and byte/s of this machine's CPU."""
    import torch

    from pretrain.hardware import memory_bandwidth, peak_flops

    return peak_flops(torch.device("cpu")), memory_bandwidth()


def _print(found: Plan, name: str) -> None:
    for note in found.notes:
        print(f"note: {note}\n")
    _print_memory(found, name)
    print(f"\n{_verdict(found)}\n")
    _print_run(found)
    for problem in found.data.problems:
        print(f"data: {problem}")


def _print_memory(found: Plan, name: str) -> None:
    memory, device = found.memory, found.gpu.name if found.gpu else "CPU"
    rows = [(_WORDS[kind], _gib(size), _gib(memory.most[kind])) for kind, size in memory.parts.items()]
    rows += [(f"fixed: {what}", _gib(size), _gib(size)) for what, size in found.fixed.items()]
    rows.append(("together", _gib(found.needed), ""))
    what = f"{name}: {memory.parameters / 1e6:,.1f} M parameters, ZeRO {memory.stage} on {found.world} rank(s)"
    kind = "bf16 autocast over fp32 weights" if found.bf16 else "fp32"
    columns = (f"memory of one {device}, GiB", f"fullest moment ({memory.phase})", "each part's own most")
    print_table(f"{what}, {kind}", columns, rows)
    print(
        f"stays between steps: {_gib(memory.state)} GiB; kept from a micro-batch's forward to its backward pass: "
        f"{_gib(memory.kept)} GiB; most in "
        + ", ".join(f"{phase} {_gib(most)}" for phase, most in memory.phases.items())
        + " GiB"
    )


def _verdict(found: Plan) -> str:
    if found.room is None or found.gpu is None:
        return (
            f"Fit {found.verdict}. A rank has {_gib(found.needed)} GiB in use at its fullest moment; on CPUs "
            "`pha train` keeps what it frees, and holds 1.2 (ZeRO 0) to 2.3 times as much."
        )
    words = (
        f"It {found.verdict}: {_gib(found.needed)} of {_gib(found.room)} GiB of an {found.gpu.name} "
        f"({found.needed / found.room:.0%})."
    )
    if found.memory.parts["buffers"] > 2**30:
        words += (
            f" {_gib(found.memory.parts['buffers'])} GiB of it are buffers that DeepSpeed reserves whole; "
            "deepspeed.zero_optimization.reduce_bucket_size (500,000,000 numbers) sets them."
        )
    if found.advice:
        words += " To lower it, alone: " + "; ".join(found.advice) + "."
    return words


def _print_run(found: Plan) -> None:
    time, checkpoint, data = found.time, found.checkpoint, found.data
    fast, slow = time.total
    day = 86_400
    rates = [f"{found.tokens_per_step / seconds:,.0f}" for seconds in (fast, slow)]
    days = [f"{found.tokens_per_step / seconds * day / 1e9:,.2f}" for seconds in (fast, slow)]
    hours = [seconds / 3600 * found.world for seconds in found.wall_s]
    unit = "GPU" if found.gpu else "rank"
    rows = [
        ("step", f"{_seconds(fast)} to {_seconds(slow)}"),
        ("of it collectives", " to ".join(map(_seconds, time.communication)) + f" ({time.sent / 1e9:,.2f} GB a rank)"),
        ("MFU", " to ".join(f"{share:.1%}" for share in reversed(time.mfu))),
        ("tokens a second", " to ".join(rates)),
        ("tokens a day [10^9]", " to ".join(days)),
        ("token budget [10^9]", f"{found.token_budget / 1e9:,.3f}"),
        ("wall time", " to ".join(map(_seconds, found.wall_s))),
        (f"{unit}-hours", " to ".join(f"{value:,.0f}" if value >= 10 else f"{value:,.2f}" for value in hours)),
        ("checkpoint", f"{checkpoint.size / 1e9:,.2f} GB; {checkpoint.count} kept: {checkpoint.kept / 1e9:,.1f} GB"),
        ("its stall", " to ".join(map(_seconds, checkpoint.stall))),
        ("main rank's copy in host memory", f"{checkpoint.main_rank / 1e9:,.2f} GB"),
    ]
    if data.tokens is not None:
        rows += [
            ("training text", f"{data.tokens:,} tokens, {data.sequences:,} sequences an epoch"),
            ("shards, blocks", f"{data.shards:,}, {data.blocks:,}"),
            ("epochs", f"{data.epochs:.2f}"),
        ]
    scored = "a range, not scored on full runs" if found.gpu else "from rates measured here, now"
    print_table(
        f"{found.nodes} node(s), {found.world} rank(s); time is {scored}", ("the run", "from fast to slow"), rows
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f}"


def _seconds(value: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if value >= 2 * size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"
