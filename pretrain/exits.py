"""Why each rank left, as a file: exit codes are lost or overwritten on their way through launchers.

`exits/<generation>/rank-N.json` has the code, the kind and the words; who starts a run again reads the first cause by
time. A rank that was killed leaves none, and that too says something. One that cannot even join the run has no
generation yet: it writes into the file that `START` names, which its supervisor has chosen.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

from pretrain.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_OVERTAKEN, EXIT_PEER_LOST, EXIT_REQUEUE
from pretrain.files import write_json

START = "PHA_START"
"""The environment variable with that file's path; its stem marks the start as the supervisor's own."""

KINDS = {
    EXIT_DONE: "done",
    EXIT_REQUEUE: "stopped",
    EXIT_BAD_INPUT: "bad input",
    EXIT_PEER_LOST: "peer lost",
    EXIT_OVERTAKEN: "overtaken",
}
"""Exit code → kind; any other code is "failed"."""


class _Place:
    """Where this process will say why it left; nowhere before it has joined a run."""

    path: Path | None = None
    known: dict[str, Any]
    step = 0

    def find(self) -> Path | None:
        """Where to write, if anywhere."""
        if self.path is None and START in os.environ:
            rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
            self.path = Path(os.environ[START])
            self.known = {"rank": rank, "host": socket.gethostname(), "pid": os.getpid()}
        return self.path


_place = _Place()


def register(folder: Path, generation: int, rank: int) -> None:
    """From now on `note` writes `folder`/generation/rank-N.json. A folder that cannot be made is a note not written."""
    place = folder / f"{generation:06d}"
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
    _place.path = place / f"rank-{rank}.json"
    _place.known = {"rank": rank, "generation": generation, "host": socket.gethostname(), "pid": os.getpid()}


def start_mark() -> str:
    """What a supervisor calls the start that this process belongs to; empty where nobody supervises."""
    return Path(os.environ[START]).stem if START in os.environ else ""


def at(step: int) -> None:
    """The step that an exit from now on belongs to."""
    _place.step = step


def note(code: int, words: str, kind: str = "") -> None:
    """Leaves the reason, once: the first is the cause. Does nothing where nobody would read it, or on a full disk."""
    path = _place.find()
    if path is None or path.exists():
        return
    record = {
        **_place.known,
        "code": code,
        "kind": kind or KINDS.get(code, "failed"),
        "words": words,
        "step": _place.step,
        "time": time.time(),
    }
    with contextlib.suppress(OSError):
        write_json(path, record)
