"""One rank of a measurement of memory: trains a few steps of each case and says what that took.

    python -m benchmarks.plan_rank CASES.json OUT.json [--as-trained]

The loop, the engine and DeepSpeed are those of `pha train`; only the text is made up, with a few documents a row. A
case's figure is how far the resident memory of the process rose above what it was just before the engine was built:
the high-water mark that the kernel keeps (VmHWM), reset through /proc/self/clear_refs before each case. Nothing of
`pretrain.plan` is imported. Freed memory must return to the system for this to be the sum of what lived at once: who
starts this process sets MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_, or asks with --as-trained for what the
allocator of `pha train` makes of it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from data_pipeline.batch import RowBatch
from data_pipeline.loader import Loader
from pretrain import config_file
from pretrain.config import RunConfig
from pretrain.deepspeed_config import batch_split
from pretrain.determinism import settle
from pretrain.distributed import Ranks, discover
from pretrain.engine import Engine
from pretrain.hardware import keep_memory, memory_bandwidth, peak_flops, usable_cores
from pretrain.loop import StepResult, Trainer
from pretrain.metrics import Throughput
from pretrain.signals import StopFlag
from pretrain.state import TrainState

WARM = ("model.preset=pha-tiny", "model.d_model=256", "model.vocab_size=8192", "data.path=none", "data.seq_len=512")
"""A first case, not reported: libraries load parts of themselves, and make room for their own work, at first use. That
is of the process, whatever it trains."""

DOCUMENTS = 3
"""A row holds about so many."""


class MadeUpText:
    """Batches as the loader of `pha train` gives them."""

    def __init__(self, config: RunConfig, rank: int, world: int) -> None:
        self._rows, self._length = config.batches[-1][1] // world, config.data.longest
        self._vocab, self._random = config.model.vocab_size or 2, np.random.default_rng(rank)
        self.sequences_consumed, self.wait_seconds = 0, 0.0

    def __next__(self) -> RowBatch:
        rows = self._random.integers(1, self._vocab, (self._rows, self._length + 1), dtype=np.uint32)
        for row in rows:
            row[self._random.choice(self._length, min(DOCUMENTS, self._length // 8), replace=False)] = 0
        self.sequences_consumed += self._rows
        return RowBatch(0, rows, np.full(self._rows, self._length + 1), bos_id=0)


class Clock:
    """The hooks of the loop: they take the time of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = time.perf_counter()

    def after_step(self, result: StepResult, throughput: Throughput) -> None:
        """Notes how long the step took."""
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now

    def validate(self) -> bool:
        """Not here."""
        return True

    def save(self) -> None:
        """Not here."""

    def roll_back(self) -> None:
        """Not here."""


def resident(name: str = "VmRSS") -> int:
    """Bytes of a line of /proc/self/status."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name + ":"))


def measure(overrides: list[str], ranks: Ranks) -> dict[str, Any]:
    """Trains the case; bytes above what the process held before, and seconds of a step."""
    tree: dict[str, Any] = {"run_dir": "none", "model": {}, "data": {}}
    for override in overrides:
        config_file.apply_override(tree, override)
    config = config_file.parse(tree, "case")
    micro, _ = batch_split(config, ranks.world.size)
    rates = peak_flops(ranks.device), memory_bandwidth()  # now, since other work on the machine changes them
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    ranks.barrier()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
    before, hooks = resident(), Clock()
    engine = Engine(config, ranks)
    built = resident("VmHWM") - before
    loader = cast(Loader, MadeUpText(config, ranks.world.rank, ranks.world.size))
    hooks._last = time.perf_counter()
    Trainer(config, ranks, engine, loader, TrainState(), cast(Any, hooks), StopFlag(), micro).run()
    peak = resident("VmHWM") - before
    engine._engine.destroy()
    seconds = statistics.median(hooks.seconds[1:])
    return {"peak": peak, "built": built, "before": before, "step_s": seconds, "rates": rates}


def main() -> None:
    """Measures each case of the file in turn; rank 0 writes what all found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, help="a list of lists of overrides, as JSON")
    parser.add_argument("output", type=Path)
    parser.add_argument("--as-trained", action="store_true", help="memory is kept by the C library, as in training")
    options = parser.parse_args()
    world = discover(os.environ)
    torch.set_num_threads(max(1, usable_cores() // world.local_size))
    settle(False)
    if options.as_trained:
        keep_memory()
    ranks = Ranks(world, 300.0)
    found = []
    for overrides in [
        [*WARM, "train.steps=2", f"train.global_batch={4 * world.size}"],
        *json.loads(options.cases.read_text(encoding="utf-8")),
    ]:
        own = measure([*overrides, "eval.every=0"], ranks)
        found.append({**own, "peak": int(ranks.largest(own["peak"])[0])})
    if world.is_main:
        options.output.write_text(json.dumps(found[1:]), encoding="utf-8")
    ranks.close()


if __name__ == "__main__":
    main()
