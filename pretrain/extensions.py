"""Where DeepSpeed's C++ parts are compiled on first use: one process at a time, and no dead one stops the living."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

FOLDER = "TORCH_EXTENSIONS_DIR"
"""The variable by which PyTorch's compiler is told where to build, and by which a user tells us."""


@contextmanager
def compiling() -> Iterator[Path]:
    """Inside, this process alone compiles extensions, into the folder given.

    PyTorch guards a build with a file named `lock` that it removes when it is done; the file of a process that was
    killed while it compiled stays, and every later build waits for it without end and without a word. The folder here
    is ours and is guarded by the kernel's lock, which goes with its process: whatever file named `lock` lies there
    once that is held belongs to the dead, and is removed. Processors differ in what `-march=native` means, so that a
    home shared by unlike nodes has one folder for each kind. Raises OSError if the folder cannot be written.
    """
    given = os.environ.get(FOLDER)
    folder = (Path(given) if given else Path.home() / ".cache" / "torch_extensions") / f"pha-{_machine()}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "building").open("ab") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        for left in folder.glob("*/lock"):
            left.unlink(missing_ok=True)
        os.environ[FOLDER] = str(folder)
        try:
            yield folder
        finally:
            if given is None:
                del os.environ[FOLDER]
            else:
                os.environ[FOLDER] = given


def _machine() -> str:
    """A name for what code compiled for this processor, with this Python and this PyTorch, runs on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    abilities = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    seen = "\n".join([platform.machine(), platform.python_version(), torch.__version__, abilities])
    return hashlib.sha256(seen.encode()).hexdigest()[:12]
