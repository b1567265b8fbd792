"""Work that goes on beside the training, and whose failure is told when it is asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path


class Task:
    """A function in a thread of its own. What it raises is kept, for whoever asks."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.error: Exception | None = None
        self.began, self.ended = time.perf_counter(), float("inf")
        """By the performance counter [s]."""
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)  # it must not keep a dying process alive
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Returns when it has ended."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:
            self.error = error
        finally:
            self.ended = time.perf_counter()


def write_files(files: dict[Path, bytes]) -> None:
    """Writes each file and lets go of its bytes. Raises OSError."""
    for path in list(files):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files.pop(path))
