"""Wall and CPU seconds of a part of a process, its child processes included. Standard library only."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from types import TracebackType

_TICK = os.sysconf("SC_CLK_TCK")


class Meter:
    """Measures the body of a ``with`` block.

    CPU time is user and system time of this process, of the children that it has waited for, and (from /proc, in
    ticks of 10 ms) of the children that are still alive, such as a pool's workers. What a child used before the block
    does not count.

    Attributes:
        wall_s, cpu_s: seconds, once the block has ended.
    """

    wall_s = 0.0
    cpu_s = 0.0

    def __enter__(self) -> Meter:
        self._cpu, self._wall = _cpu_seconds(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wall_s = time.perf_counter() - self._wall
        self.cpu_s = _cpu_seconds() - self._cpu


def resident_mib() -> float:
    """Memory of this process that is in RAM now, in MiB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def _cpu_seconds() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent) + _living_children(os.getpid())


def _living_children(process: int) -> float:
    """CPU seconds of the processes below this one that have not been waited for."""
    total = 0.0
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            numbers = children.read_text().split()
        except OSError:
            continue  # a thread that has just ended
        for child in numbers:
            try:
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # waited for meanwhile
            # utime, stime, and those of its own children that it has waited for: fields 14 to 17 of proc(5)
            total += sum(map(int, fields[11:15])) / _TICK + _living_children(int(child))
    return total
