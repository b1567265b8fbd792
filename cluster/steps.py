"""Asks many nodes of a job at once: a program on each, which prints lines of JSON, through srun.

srun waits for nodes that are gone. Nobody here waits for srun longer than a limit, nor for few nodes much longer than
the others took.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster import slurm
from cluster.errors import ClusterError

TICK_S = 0.1
GRACE_S = 5.0
"""So long the others have when half of the nodes have answered, ..."""
GRACE_TIMES = 4.0
"""... or so many times what that half took, whichever is more."""
_LEAVE_S = 1.0
_COMPLAINTS = 20

Line = dict[str, Any]


@dataclass
class Answers:
    """What nodes have said."""

    lines: dict[str, list[Line]] = field(default_factory=dict)
    """Node → its lines, each with `arrived`, our clock when it came."""
    complaints: list[str] = field(default_factory=list)
    """srun's last lines on standard error."""
    seconds: float = 0.0

    def of(self, node: str, key: str, value: str) -> list[Line]:
        """The node's lines in which `key` has this value."""
        return [line for line in self.lines.get(node, []) if line.get(key) == value]

    def take(self, text: bytes, now: float) -> None:
        """Adds one line; anything that is no object with a host is left out."""
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("host"), str):
                self.lines.setdefault(line["host"], []).append({**line, "arrived": now})


def arguments(nodes: Sequence[str], gpus: int, command: Sequence[str]) -> list[str]:
    """srun's, for one task on each of these nodes beside whatever else the job has there."""
    return [
        "srun",
        f"--nodes={len(nodes)}",
        f"--ntasks={len(nodes)}",
        "--ntasks-per-node=1",
        f"--nodelist={','.join(nodes)}",
        # What a lost node's step still holds on Slurm's books must not keep this one waiting.
        "--overlap",
        "--mem=0",
        "--kill-on-bad-exit=0",
        "--job-name=preflight",
        *([f"--gpus-per-node={gpus}"] if gpus else []),
        *command,
    ]


def ask(
    job_id: str,
    commands: Sequence[Sequence[str]],
    nodes: Sequence[str],
    ended: Callable[[Sequence[Line]], bool],
    limit_s: float,
    stop: Callable[[], bool] = lambda: False,
    grace_s: float = GRACE_S,
) -> Answers:
    """Runs these commands at the same time, and gathers what they print.

    Args:
        job_id: whose steps they are.
        commands: each an srun.
        nodes: that are expected to answer.
        ended: whether a node's lines are all that it has to say.
        limit_s: so long at most.
        stop: asked all the time; True ends the asking.
        grace_s: see `GRACE_S`.
    """
    answers, began = Answers(), time.monotonic()
    running = [_start(command) for command in commands]
    deadline = began + limit_s
    with selectors.DefaultSelector() as selector:
        buffers = {}
        for process in running:
            for stream in (process.stdout, process.stderr):
                assert stream is not None  # pipes, as _start made them
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ, stream is process.stdout)
                buffers[stream.fileno()] = b""
        half = False
        while selector.get_map() and time.monotonic() < deadline and not stop():
            for key, _ in selector.select(TICK_S):
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fileobj)
                *whole, buffers[key.fd] = (buffers[key.fd] + chunk).split(b"\n")
                for text in whole:
                    _sort(answers, text, bool(key.data))
            over = sum(ended(answers.lines.get(node, [])) for node in nodes)
            if over == len(nodes):
                break
            if not half and 2 * over >= len(nodes):
                half, took = True, time.monotonic() - began
                deadline = min(deadline, time.monotonic() + max(grace_s, GRACE_TIMES * took))
    _end(job_id, running)
    answers.seconds = time.monotonic() - began
    return answers


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    # In a session of its own: what Slurm sends to the batch step is for the supervisor.
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def _sort(answers: Answers, text: bytes, is_output: bool) -> None:
    if is_output:
        answers.take(text, time.time())
        return
    answers.complaints = [*answers.complaints, text.decode("utf-8", "replace").strip()][-_COMPLAINTS:]


def _end(job_id: str, running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends what is left of the steps: where all have answered they end by themselves in a moment."""
    over = time.monotonic() + _LEAVE_S
    while any(process.poll() is None for process in running) and time.monotonic() < over:
        time.sleep(0.005)
    left = [process for process in running if process.poll() is None]
    if left:
        with contextlib.suppress(ClusterError, OSError):
            for step in slurm.steps_of(job_id):  # not waited for: scancel waits in turn for nodes that are gone
                subprocess.Popen(
                    ["scancel", "--signal=KILL", step],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
