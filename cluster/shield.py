"""Stands between Slurm and torchrun, and between torchrun and a rank.

    python -m cluster.shield agent COMMAND...         # starts torchrun, which sees no signal; its ranks see them all
    python -m cluster.shield rank FOLDER COMMAND...   # becomes a rank as srun would have started it

Slurm signals the tasks of a step: where it tracks processes by cgroup only those that it has started itself (22.05),
else also what they have started. Ranks under torchrun are not among the first, and torchrun must not be among the
second: it has no handler for USR1, and answers TERM by killing its ranks 30 s later, perhaps in the middle of a save.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

from cluster.errors import ClusterError

FOR_RANKS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def agent(command: list[str]) -> int:
    """Starts `command`, for which these signals do not exist, and passes them on to what it has started.

    What is ignored stays so over exec, but torchrun sets handlers of its own: see `signals-to-handle` in
    `cluster.step`. SIGKILL to this process ends them all. Returns the exit code. Raises OSError.
    """
    if node := os.environ.get("SLURMD_NODENAME"):
        # Rank 0 is met at this address; torchrun would ask the resolver for a full name, which others may not know.
        os.environ.setdefault("PET_LOCAL_ADDR", node)
    for number in FOR_RANKS:
        signal.signal(number, signal.SIG_IGN)
    process = subprocess.Popen(command, preexec_fn=die_with_parent)
    for number in FOR_RANKS:
        signal.signal(number, lambda number, _: _to_children(process.pid, number))
    code = process.wait()
    return code if code >= 0 else 128 - code


def _to_children(pid: int, number: int) -> None:
    """To those that are there; who signals asks whether the ranks were."""
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in listed.read_text(encoding="ascii").split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), number)


def rank(folder: Path, command: list[str]) -> None:
    """Becomes `command` with its output in `folder`/rank-N.out and with the signals that it would have without agent.

    A rank that has no handler yet dies of them, as it does under srun, and so a start that is asked to stop ends.
    Raises OSError.
    """
    file = os.open(folder / f"rank-{os.environ['RANK']}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    for number in FOR_RANKS:
        signal.signal(number, signal.SIG_DFL)
    die_with_parent()
    os.execvp(command[0], command)


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the one that started it dies (PR_SET_PDEATHSIG, Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main() -> None:
    """Does what the command line says; a problem is one sentence on standard error."""
    try:
        match sys.argv[1:]:
            case ["agent", *command] if command:
                raise SystemExit(agent(command))
            case ["rank", folder, *command] if command and "RANK" in os.environ:
                rank(Path(folder), command)
            case _:
                raise ClusterError("cluster.shield needs `agent COMMAND...`, or `rank FOLDER COMMAND...` and RANK.")
    except (ClusterError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
