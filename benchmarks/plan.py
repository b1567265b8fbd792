"""How well `pha plan` predicts: the peak memory and the step time of real training steps on this machine's CPU.

    python -m benchmarks.plan [--work DIR] [--write docs/plan.md] [--json]

Each case is trained for three steps by `benchmarks.plan_rank`, in processes of their own, and planned by
`pretrain.memory_plan`, which shares nothing with it but the config. What has been measured is kept in DIR/cases.json,
so that a second start goes on; remove the file to measure anew.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.errors import BenchError
from benchmarks.machine import describe
from benchmarks.plan_rank import DOCUMENTS
from benchmarks.process import ROOT
from benchmarks.tables import Cell, Table
from pretrain import config_file
from pretrain.config import RunConfig
from pretrain.hardware import memory_bandwidth, peak_flops, usable_cores
from pretrain.markdown import check_section, write_section
from pretrain.memory_plan import Memory, plan_memory
from pretrain.step_time import step_time

SECTION = "benchmarks/plan.py"
TOGETHER = 6
"""Cases of one launch."""
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Settings of the C library under which freed memory of more than 64 KiB goes back to the system."""
COMMON = ("data.path=none", "train.steps=3", "model.vocab_size=8192")


@dataclass(frozen=True)
class Case:
    """One training that is planned and measured."""

    ranks: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it is, in the words of the config."""
        return " ".join(text.removeprefix("model.").removeprefix("train.") for text in self.overrides)

    def config(self) -> RunConfig:
        """As a run."""
        tree: dict[str, Any] = {"run_dir": "none", "model": {}, "data": {}}
        for override in (*COMMON, *self.overrides):
            config_file.apply_override(tree, override)
        return config_file.parse(tree, "case")


def medium(architecture: str, *others: str, ranks: int, rows: int = 4) -> Case:
    """15 to 26 million parameters at 512 tokens: more than half of it is activations."""
    width = {"pha": 384, "transformer": 512}[architecture]
    sizes = (f"model.preset={architecture}-tiny", f"model.d_model={width}", "data.seq_len=512")
    return Case(ranks, (*sizes, f"train.global_batch={rows}", *others))


def wide(architecture: str, *others: str) -> Case:
    """62 million parameters and 128 tokens in two micro-batches: nearly all is weights, gradients, moments, buffers."""
    sizes = (f"model.preset={architecture}-tiny", "model.d_model=768", "model.vocab_size=16384", "data.seq_len=128")
    return Case(2, (*sizes, "train.global_batch=8", "train.micro_batch=2", *others))


def small(preset: str, *others: str, length: int = 512) -> Case:
    """About 7 million parameters on one rank."""
    sizes = (f"model.preset={preset}", "model.d_model=256", f"data.seq_len={length}", "train.global_batch=4")
    return Case(1, (*sizes, *others))


def grid() -> list[Case]:
    """All cases."""
    full, half, two = "train.recompute.mode=full", "train.recompute.every=2", "train.micro_batch=2"
    cases = [medium("pha", two, ranks=1)]
    for name in ("pha", "transformer"):
        cases += [medium(name, *others, ranks=1) for others in ((), (full,), (full, half))]
        cases += [medium(name, f"train.zero_stage={stage}", ranks=2) for stage in (0, 1, 2, 3)]
        cases += [medium(name, two, "train.zero_stage=2", full, ranks=2, rows=8)]
        cases += [medium(name, "train.zero_stage=3", full, ranks=2)]
        cases += [wide(name, f"train.zero_stage={stage}", *([full] if stage % 2 else [])) for stage in (0, 1, 2, 3)]
    others = ("mamba2", "gss", "gss-hybrid", "h3", "h3-hybrid", "hedgehog", "taipan")
    cases += [small(f"{name}-tiny") for name in others]
    cases += [small("pha-tiny", "model.attention.window=64", "model.dropout=0.1")]
    cases += [small("transformer-tiny", "model.attention.window=64", length=1024)]
    return sorted(cases, key=lambda case: case.ranks)


def planned(case: Case) -> Memory:
    """What `pha plan` says of the case, which is told how long its documents are."""
    config = case.config()
    return plan_memory(config, case.ranks, gpu=False, bf16=False, document_tokens=config.data.longest / DOCUMENTS)


def expected(memory: Memory) -> int:
    """Of the moments that are measured: no validation is among them."""
    return max(memory.phases["start"], memory.phases["training"])


def measured(cases: Sequence[Case], work: Path, as_trained: bool = False) -> list[dict[str, Any]]:
    """Trains cases of one number of ranks in one launch: peak [bytes] and seconds of a step of each.

    Raises BenchError with the last words of a rank that fails.
    """
    ranks = cases[0].ranks
    ask, answer = work / "ask.json", work / "answer.json"
    ask.write_text(json.dumps([[*COMMON, *case.overrides] for case in cases]), encoding="utf-8")
    answer.unlink(missing_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.plan_rank", str(ask), str(answer)]
    command += ["--as-trained"] if as_trained else []
    places = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common = {**os.environ, **({} if as_trained else RETURNED), **{name: str(value) for name, value in places.items()}}
    processes = []
    for rank in range(ranks):
        log = (work / f"rank-{rank}.log").open("w", encoding="utf-8")
        env = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log))
        log.close()
    codes = [process.wait() for process in processes]
    if any(codes):
        rank = next(index for index, code in enumerate(codes) if code)
        words = (work / f"rank-{rank}.log").read_text(encoding="utf-8").strip().splitlines() or ["no words"]
        raise BenchError(f"rank {rank} of the cases {[case.name for case in cases]} failed: {words[-1]}")
    found: list[dict[str, Any]] = json.loads(answer.read_text(encoding="utf-8"))
    return found


def run(work: Path) -> dict[str, Any]:
    """Measures what is not yet in `work`/cases.json, plans all, and gives both."""
    kept = work / "cases.json"
    known: dict[str, dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for ranks in (1, 2):
        missing = [case for case in grid() if case.ranks == ranks and f"{ranks} {case.name}" not in known]
        for begin in range(0, len(missing), TOGETHER):
            some = missing[begin : begin + TOGETHER]
            for case, one in zip(some, measured(some, work), strict=True):
                known[f"{ranks} {case.name}"] = one
            kept.write_text(json.dumps(known, indent=1), encoding="utf-8")
            print(f"{len(known)} of {len(grid())} cases", file=sys.stderr, flush=True)
    rates = {}
    for ranks in (1, 2):
        torch.set_num_threads(max(1, usable_cores() // ranks))
        rates[ranks] = peak_flops(torch.device("cpu")), memory_bandwidth()
    results = []
    for case in grid():
        memory, one = planned(case), known[f"{case.ranks} {case.name}"]
        time = step_time(case.config(), case.ranks, 1, memory, None, cpu=one.get("rates", rates[case.ranks]))
        results.append(
            {
                "case": case.name,
                "ranks": case.ranks,
                "planned": expected(memory),
                "measured": one["peak"],
                "error": expected(memory) / one["peak"] - 1,
                "parts": memory.parts,
                "step_s": one["step_s"],
                "planned_s": time.total,
            }
        )
    return {"machine": describe(), "rates": rates, "cases": results}


def table(found: dict[str, Any]) -> Table:
    """For people."""
    columns = ("case", "ranks", "planned, MB", "measured, MB", "error", "step planned, s", "step measured, s")
    result = Table("Peak memory of a rank: planned and measured", columns)
    errors = [abs(one["error"]) for one in found["cases"]]
    for one in found["cases"]:
        span = f"{one['planned_s'][0]:.2f}–{one['planned_s'][1]:.2f}"
        row: list[Cell] = [one["case"], str(one["ranks"]), f"{one['planned'] / 1e6:,.1f}"]
        row += [f"{one['measured'] / 1e6:,.1f}", f"{one['error']:+.1%}", span, f"{one['step_s']:.2f}"]
        result.rows.append(row)
    inside = sum(one["planned_s"][0] <= one["step_s"] <= one["planned_s"][1] for one in found["cases"])
    machine, rates = found["machine"], found["rates"][1]
    result.remarks += [
        f"{len(errors)} cases; errors of memory: largest {max(errors):.1%}, mean {sum(errors) / len(errors):.1%}. "
        f"All with {' '.join(COMMON)}, unless the case says otherwise.",
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB; step times are medians of "
        f"two steps; {inside} of {len(errors)} are within the planned range, of rates taken beside each case if it has "
        f"them, else at the end: {rates[0] / 1e9:.0f} GFLOP/s and {rates[1] / 1e9:.1f} GB/s of one rank alone.",
    ]
    return result


def main() -> None:
    """Measures, plans and prints; with --write into the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keeps what was measured; a temporary folder if not given")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.write is not None:
        check_section(options.write, SECTION)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        found = run(work)
    print(json.dumps(found) if options.json else table(found).markdown())
    if options.write is not None:
        write_section(options.write, SECTION, table(found).markdown())


if __name__ == "__main__":
    main()
