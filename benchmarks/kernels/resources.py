"""Compiles every kernel ahead of time for GPUs that are not there; a program of its own, without TRITON_INTERPRET.

    python -m benchmarks.kernels.resources PRESET [PRESET ...] [--target sm_90 ...] [--batch 24] [--tokens 1024]

Prints JSON: registers, spills, shared memory and occupancy of every kernel that a case launches, on every target.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.kernels.cases import cases, gradients
from model.kernels import dispatch
from model.presets import preset

META = torch.device("meta")


def launches(name: str, batch: int, tokens: int) -> list[Any]:
    """What a preset's cases launch, with tensors that have shapes and no numbers; the scan in both of its forms."""
    from model.kernels.launch import describing

    dispatch.choose("triton", META)
    found = []
    for rows, length in ((batch, tokens), (1, batch * tokens)):
        with describing() as described:
            for case in cases(preset(name), rows, length, META):
                gradients(case, case.run(*case.leaves))
        found += described
    return found


def main() -> None:
    """Compiles what the presets launch."""
    from model.kernels.aot import TARGETS, compile_launch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--target", action="append", choices=[target.name for target in TARGETS])
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=1024)
    options = parser.parse_args()
    wanted: dict[str, Any] = {}
    for name in options.presets:
        for launch in launches(name, options.batch, options.tokens):
            wanted.setdefault(_key(launch), (name, launch))
    targets = [target for target in TARGETS if not options.target or target.name in options.target]
    jobs = [(name, launch, target) for name, launch in wanted.values() for target in targets]

    def compiled(job: tuple[str, Any, Any]) -> dict[str, Any]:
        name, launch, target = job
        return {"preset": name, "module": launch.kernel.__module__, **asdict(compile_launch(launch, target))}

    with ThreadPoolExecutor(2) as pool:
        print(json.dumps({"kernels": list(pool.map(compiled, jobs))}))


def _key(launch: Any) -> str:
    """What the compiler would see: launches with one key are one program."""
    seen = [launch.kernel.__module__, launch.kernel.__name__, str(launch.warps), str(launch.stages)]
    for parameter in launch.kernel.params:
        value = launch.arguments[parameter.name]
        if isinstance(value, torch.Tensor):
            seen.append(str(value.dtype))
        elif parameter.is_constexpr or not isinstance(value, int):
            seen.append(f"{parameter.name}={value}")
        else:
            seen.append("1" if value == 1 else str(value % 16 == 0))
    return " ".join(seen)


if __name__ == "__main__":
    main()
