"""The program that tries what ranks do, with one process on each node: `python -m pretrain.link_probe JSON`.

Groups of nodes, disjoint, each sum an array over all their members and check the sum; then every node times a matrix
product. Each stage is a line of JSON on standard output as soon as it is over; `cluster.preflight` reads them. Where a
stage does not end in time the process says so and leaves: a collective with a node that is gone would wait for much
longer.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from pretrain.hardware import usable_cores

REPEATS = 3
GEMM_S = 0.2
"""A CPU repeats its product for so long; the best counts."""


@dataclass
class Probe:
    """What one node is to do."""

    groups: list[list[str]]
    port: int
    timeout_s: float
    size_mb: float = 4.0
    gemm: bool = False
    """Whether matrix products are timed too."""
    host: str = field(default_factory=lambda: os.environ.get("SLURMD_NODENAME") or socket.gethostname())
    stage: str = "device"
    """What is being done now."""

    def say(self, stage: str, **values: Any) -> None:
        """Prints a line."""
        line = {"host": self.host, "time": time.time(), "stage": stage, **values}
        print(json.dumps(line), flush=True)

    def run(self) -> None:
        """All stages. What fails is the last line."""
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        self.try_devices()
        self.say("device", kind=device.type)
        group = next((group for group in self.groups if self.host in group), [self.host])
        if len(group) > 1:
            self.stage = "join"
            self.join(group, device)
            self.stage = "reduce"
            self.say("reduced", **self.reduce(group.index(self.host) + 1, len(group), device))
        if self.gemm:
            self.stage = "gemm"
            self.say("gemm", rates=[round(rate) for rate in self.gemm_rates()])

    def try_devices(self) -> None:
        """A sum on each device, checked. Raises RuntimeError where one does not compute."""
        for index in range(torch.cuda.device_count()):
            total = float(torch.ones(1 << 16, device=f"cuda:{index}").sum())
            if total != 1 << 16:
                raise RuntimeError(f"GPU {index} sums {1 << 16} ones to {total:g}")

    def join(self, group: list[str], device: torch.device) -> None:
        """Meets the others of the group at its first node."""
        timeout = datetime.timedelta(seconds=self.timeout_s)
        rank = group.index(self.host)
        store = dist.TCPStore(  # type: ignore[attr-defined]
            group[0], self.port, len(group), rank == 0, timeout, wait_for_workers=False
        )
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=len(group), timeout=timeout)

    def reduce(self, factor: int, members: int, device: torch.device) -> dict[str, Any]:
        """Sums over the group; whole numbers, so that the sum is exact. Seconds and megabytes a second, the best."""
        pattern = torch.arange(round(self.size_mb * 1e6 / 4), dtype=torch.int32, device=device) % 251
        expected = pattern * (members * (members + 1) // 2)
        best, right = float("inf"), True
        for _ in range(1 + REPEATS):  # the first one connects
            values = pattern * factor
            self._synchronise(device)
            began = time.perf_counter()
            dist.all_reduce(values)
            self._synchronise(device)
            best = min(best, time.perf_counter() - began)
            right = right and bool(torch.equal(values, expected))
        return {"right": right, "seconds": round(best, 5), "mb_s": round(self.size_mb / best, 2)}

    def gemm_rates(self) -> list[float]:
        """FLOP/s of a matrix product on each device, in the type that it trains in."""
        if torch.cuda.is_available():
            return [self._gpu_rate(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
        size, best = 512, float("inf")
        a, over = torch.ones(size, size), time.perf_counter() + GEMM_S
        while time.perf_counter() < over:
            began = time.perf_counter()
            torch.mm(a, a)
            best = min(best, time.perf_counter() - began)
        return [2.0 * size**3 / best]

    def _gpu_rate(self, device: torch.device, size: int = 8192, repeats: int = 10) -> float:
        a = torch.ones(size, size, dtype=torch.bfloat16, device=device)
        best = float("inf")
        for _ in range(3):
            torch.cuda.synchronize(device)
            began = time.perf_counter()
            for _ in range(repeats):
                torch.mm(a, a)
            torch.cuda.synchronize(device)
            best = min(best, (time.perf_counter() - began) / repeats)
        return 2.0 * size**3 / best

    def _synchronise(self, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def give_up(self) -> None:
        """Says in which stage the time was up, and ends the process: a collective cannot be called off."""
        self.say("failed", at=self.stage, error=f"it has not ended within {self.timeout_s:g} s")
        os._exit(1)


def main() -> None:
    """Does what the first argument asks for."""
    probe = Probe(**json.loads(sys.argv[1]))
    probe.say("imported")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 0) or usable_cores())
    timer = threading.Timer(probe.timeout_s + 1.0, probe.give_up)  # the collectives' own limit knows more
    timer.daemon = True
    timer.start()
    try:
        probe.run()
    except Exception as error:  # whatever it is: it is what there is to be said of this node
        words = (str(error).strip().splitlines() or [""])[0]
        probe.say("failed", at=probe.stage, error=f"{type(error).__name__}: {words}"[:400])
        code = 1
    else:
        probe.say("end")
        code = 0
    sys.stdout.flush()
    os._exit(code)  # leaving a group waits for the others


if __name__ == "__main__":
    main()
