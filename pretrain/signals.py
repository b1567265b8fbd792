"""The wish to stop: a flag that signals set and every loop polls."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType
from typing import Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopFlag:
    """Set by SIGTERM, SIGUSR1 (Slurm's early warning) or Ctrl-C while the context is open.

    The run then saves at the next step boundary, where all ranks agree. A second Ctrl-C is not obeyed at once
    either: it would lose the very checkpoint that was asked for; SIGKILL remains.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.since = 0.0
        """When the wish came, by the monotonic clock [s]."""
        self._file: Path | None = None
        self._old: dict[signal.Signals, object] = {}

    def watch(self, file: Path) -> None:
        """From now on a file of this name is a wish to stop too: for those who cannot send signals."""
        self._file = file

    @property
    def by_file(self) -> bool:
        """Whether the wish is a file: it stays, and so the run must not be started again by itself."""
        return self._file is not None and self.reason == self._file.name

    def __bool__(self) -> bool:
        if not self.reason and self._file is not None and self._file.exists():
            self.reason, self.since = self._file.name, time.monotonic()
        return bool(self.reason)

    def __enter__(self) -> StopFlag:
        for number in STOP_SIGNALS:
            self._old[number] = signal.signal(number, self._set)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave us

    def _set(self, number: int, _: FrameType | None) -> None:
        if not self.reason:
            self.reason, self.since = signal.Signals(number).name, time.monotonic()
