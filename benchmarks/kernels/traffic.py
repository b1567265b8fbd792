"""Counts the bytes of every kernel in Triton's interpreter; a program of its own, started with TRITON_INTERPRET=1.

    TRITON_INTERPRET=1 python -m benchmarks.kernels.traffic PRESET [--tokens 512] [--only NAME]

Prints JSON: for each case, forward and backward, bytes a token of the kernels, of the floor and of the PyTorch chain.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from benchmarks.kernels.cases import Case, cases, floor, gradients
from benchmarks.kernels.chain import ChainTraffic
from model.kernels import dispatch
from model.presets import preset

CPU = torch.device("cpu")


def measure(case: Case) -> dict[str, Any]:
    """Bytes a token of one case."""
    from model.kernels.interpreter import counted, whole_rows

    dispatch.choose("triton", CPU)
    with whole_rows():
        with counted() as forward:
            outputs = case.run(*case.leaves)
        floors = floor(case, outputs)
        with counted() as backward:
            gradients(case, outputs)
    dispatch.choose("reference", CPU)
    with ChainTraffic() as chain:
        outputs = case.run(*case.leaves)
        chain_forward = chain.total
        if case.leaves:
            gradients(case, outputs)
    passes = {
        "forward": (forward.total, floors[0], chain_forward),
        "backward": (backward.total, floors[1], chain.total - chain_forward),
    }
    return {
        "name": case.name,
        "pointwise": case.pointwise,
        "per_layer": case.per_layer,
        "passes": {
            name: dict(zip(("kernel", "floor", "chain"), (b / case.tokens for b in found), strict=True))
            for name, found in passes.items()
            if name == "forward" or case.leaves
        },
    }


def main() -> None:
    """Measures the cases of a preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--only", action="append")
    options = parser.parse_args()
    found = cases(preset(options.preset), 1, options.tokens, CPU)
    print(json.dumps({"cases": [measure(case) for case in found if not options.only or case.name in options.only]}))


if __name__ == "__main__":
    main()
