"""Starts the ranks of a run on this machine and keeps them together: all live, or none does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType

from cluster.errors import ClusterError
from cluster.shield import die_with_parent

GRACE_S = 20.0
"""How long the ranks may take to leave once one of them has left on request."""
SETTLE_S = 2.0
"""How long to wait for the words of the rank that failed first: the others fail because of it, often sooner."""
STOPPED, PEER_LOST = 75, 76
"""Exit codes of a rank that stopped on request, and of one that only lost another."""


@dataclass(frozen=True)
class Place:
    """Where the ranks of this machine stand among those of all machines of a start."""

    first: int
    """The number of this machine's first rank."""
    world: int
    """How many ranks there are on all machines."""
    address: str
    """Where rank 0 is met, with `port`."""
    port: int
    env: Mapping[str, str] = field(default_factory=dict)
    """Further environment variables."""


class LocalJob:
    """The processes of one launch on this machine: rank 0 speaks on this terminal, the others into files.

    When a rank fails, the others are killed: they would only wait for it. Ranks that leave on request (code 75) are
    waited for, because they save. When this process dies, however it dies, the kernel kills the ranks (Linux).
    """

    def __init__(self, command: Sequence[str], ranks: int, output: Path, place: Place | None = None) -> None:
        """Starts `ranks` processes of `command`, told their places as torchrun would tell them.

        Args:
            output: the folder for what ranks other than 0 print.
            place: where there are other machines; they are all ranks if not given.

        Raises ClusterError if a process cannot start.
        """
        if ranks < 1:
            raise ClusterError(f"A launch needs at least one rank, not {ranks}.")
        output.mkdir(parents=True, exist_ok=True)
        self.output = output
        self._processes: list[subprocess.Popen[bytes]] = []
        self._since: dict[str, float] = {}
        place = place or Place(0, ranks, "127.0.0.1", free_port())
        self._first = place.first
        places = {
            **place.env,
            "WORLD_SIZE": str(place.world),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": place.address,
            "MASTER_PORT": str(place.port),
        }
        for local in range(ranks):
            env = {**os.environ, **places, "RANK": str(place.first + local), "LOCAL_RANK": str(local)}
            self._processes.append(self._start(list(command), env, place.first + local))

    def poll(self) -> int | None:
        """The job's exit code, or None while it runs. A failed rank ends the others, a few seconds later."""
        codes = self.codes
        if all(code == 0 for code in codes):
            return 0
        if all(code in (None, 0) for code in codes):
            return None
        if all(code in (None, 0, STOPPED) for code in codes):
            # A rank that was asked to stop saves first; one that waits for a dead neighbour never will.
            ready = None not in codes or self._longer_than(GRACE_S, "stopping")
        else:
            ready = any(c not in (None, 0, STOPPED, PEER_LOST) for c in codes) or self._longer_than(SETTLE_S, "lost")
        if not ready:
            return None
        rank, code = self._first_cause()
        self.kill()
        if rank and code not in (-signal.SIGKILL, STOPPED):
            self._show(rank)
        return code if code > 0 else 128 - code

    @property
    def codes(self) -> list[int | None]:
        """Of this machine's ranks in order; None while one runs."""
        return [process.poll() for process in self._processes]

    def wait(self) -> int:
        """Waits for the job and returns its exit code; a signal to this process is passed on to the ranks."""
        with _Forwarding(self):
            while (code := self.poll()) is None:
                time.sleep(0.1)
        return code

    def signal(self, number: int) -> bool:
        """Sends a signal to every rank that still runs; whether there is one."""
        running = [process for process in self._processes if process.poll() is None]
        for process in running:
            process.send_signal(number)
        return bool(running)

    def kill(self) -> None:
        """SIGKILL to every rank, as a power cut would do it, and waits until they are gone."""
        self.signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()

    def __enter__(self) -> LocalJob:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _start(self, command: list[str], env: dict[str, str], rank: int) -> subprocess.Popen[bytes]:
        try:
            if rank == 0:
                return subprocess.Popen(command, env=env, preexec_fn=die_with_parent)
            with self._file(rank).open("wb") as file:
                return subprocess.Popen(
                    command, env=env, stdout=file, stderr=subprocess.STDOUT, preexec_fn=die_with_parent
                )
        except OSError as error:
            self.kill()
            raise ClusterError(f"Rank {rank} could not be started ({error}).") from None

    def _first_cause(self) -> tuple[int, int]:
        """The rank that the others follow, and its code: rather one that failed by itself than one that lost it."""
        failed = [(rank, code) for rank, code in enumerate(self.codes, self._first) if code]
        order = {STOPPED: 2, PEER_LOST: 1}
        return min(failed, key=lambda found: (order.get(found[1], 0), found[0]))

    def _longer_than(self, seconds: float, state: str) -> bool:
        """Whether it was in this state when asked so long ago."""
        return time.monotonic() - self._since.setdefault(state, time.monotonic()) >= seconds

    def _show(self, rank: int) -> None:
        tail = self._file(rank).read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        for line in tail:
            print(f"rank {rank}: {line}", file=sys.stderr)

    def _file(self, rank: int) -> Path:
        return self.output / f"rank-{rank}.out"


class _Forwarding:
    """While open, SIGTERM, SIGINT and SIGUSR1 to this process go to the ranks, which save and leave."""

    def __init__(self, job: LocalJob) -> None:
        self._job = job
        self._old: dict[int, object] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self._old[number] = signal.signal(number, self._pass_on)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave us

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        # Ctrl-C on a terminal reaches the ranks by itself: they are in the same process group.
        if number != signal.SIGINT or not sys.stdin.isatty():
            self._job.signal(number)


def free_port() -> int:
    """A TCP port that was free on this machine a moment ago."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
