"""What the data order costs at scale: a synthetic index of nine billion tokens (OpenWebText) and one of a trillion.

    python benchmarks/order.py [--json]

For each: the blocks, seconds until the order stands, its memory (the table of block sizes included) and the time to
find a sequence: first in an epoch that has not been touched yet (what a resumed run pays, once), then anywhere within
it. The plain permutation is measured on both sizes, beside the two-level one that is used beyond 262,144 blocks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from data_pipeline.order import Order
from data_pipeline.shuffle import PLAIN_UNITS

_BLOCK = 65_536
_SIZES = {"9e9": 9_000_000_000, "1e12": 1_000_000_000_000}


def measure(tokens: int, plain: bool) -> dict[str, float | int | str]:
    """The figures of one dataset size, in this process. Times are medians; memory is the growth of the peak."""
    sizes = np.random.default_rng(0).integers(_BLOCK - 2000, _BLOCK + 2000, tokens // _BLOCK)
    limit = len(sizes) if plain else min(PLAIN_UNITS, len(sizes) - 1)
    before = _peak_mib()
    started = time.perf_counter()
    order = Order(sizes, 2048, 512, 0, True, plain_units=limit)
    start = time.perf_counter() - started
    epoch, fresh = order.sequences_per_epoch, []
    for number in (0, 1, 10, 1000, 10**6):  # epochs that have not been touched
        started = time.perf_counter()
        order.locate(number * epoch + epoch // 2)
        fresh.append(time.perf_counter() - started)
    near, far = (
        [_seek(order, base + int(f * epoch)) for f in np.linspace(0, 0.99, 200)] for base in (0, 10**6 * epoch)
    )
    return {
        "tokens": tokens,
        "blocks": len(sizes),
        "order": "plain" if plain else "two levels",
        "start_s": start,
        "memory_mib": _peak_mib() - before + sizes.nbytes / 2**20,
        "first_in_epoch_ms": float(np.median(fresh)) * 1e3,
        "seek_first_epoch_ms": float(np.median(near[1:])) * 1e3,
        "seek_epoch_1e6_ms": float(np.median(far[1:])) * 1e3,
        "slowest_seek_ms": max(near[1:] + far[1:]) * 1e3,
    }


def _seek(order: Order, k: int) -> float:
    started = time.perf_counter()
    order.locate(k)
    return time.perf_counter() - started


def _peak_mib() -> float:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024


def main() -> None:
    """Measures each size and order in a process of its own, and prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("TOKENS", "ORDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(_SIZES[options.one[0]], options.one[1] == "plain")))
        return
    rows = []
    for size in _SIZES:
        for kind in ("plain", "two"):
            command = [sys.executable, __file__, "--one", size, kind]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print(" | ".join(rows[0]))
    for row in rows:
        print(" | ".join(f"{value:,.3f}" if isinstance(value, float) else str(value) for value in row.values()))


if __name__ == "__main__":
    main()
