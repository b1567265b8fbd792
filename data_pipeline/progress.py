"""Progress bars of a build, on standard error so that standard output stays free for results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, TransferSpeedColumn

#: Called with the documents and bytes that were just finished.
Advance = Callable[[int, int], None]


#: A log gets a line at least this often (s).
_LINE_EVERY = 30.0


class BuildProgress:
    """One bar a phase, measured in bytes of text, or lines where standard error is a log; nothing if not `enabled`."""

    def __init__(self, enabled: bool) -> None:
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[documents]:>9,} documents  {task.fields[megabytes]:>9,.1f} MB"),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self._progress = Progress(*columns, console=console, disable=not enabled, refresh_per_second=4)

    def say(self, sentence: str) -> None:
        """Print one sentence, beside the bars."""
        if not self._progress.disable:
            self._progress.console.print(sentence, highlight=False, soft_wrap=True)

    @contextmanager
    def phase(self, name: str, total_bytes: int | None = None) -> Iterator[Advance]:
        """A bar for the time of the ``with`` block; without a total it only counts."""
        if self._progress.disable or not self._progress.console.is_terminal:
            with self._lines(name) as advance:
                yield advance
            return
        task = self._progress.add_task(name, total=total_bytes, documents=0, megabytes=0.0)
        counts = [0, 0]

        def advance_bar(documents: int, bytes_: int) -> None:
            counts[0] += documents
            counts[1] += bytes_
            self._progress.update(task, advance=bytes_, documents=counts[0], megabytes=counts[1] / 1e6, refresh=False)

        with self._progress:
            yield advance_bar
            self._progress.update(task, total=counts[1], completed=counts[1])
        self._progress.remove_task(task)

    @contextmanager
    def _lines(self, name: str) -> Iterator[Advance]:
        counts, started = [0, 0], time.monotonic()
        due = started + _LINE_EVERY

        def line(state: str) -> str:
            took = time.monotonic() - started
            rate = counts[1] / 1e6 / max(took, 1e-9)
            return (
                f"{name}: {counts[0]:,} documents, {counts[1] / 1e6:,.1f} MB {state} {took:,.1f} s ({rate:,.1f} MB/s)"
            )

        def advance(documents: int, bytes_: int) -> None:
            nonlocal due
            counts[0] += documents
            counts[1] += bytes_
            if time.monotonic() >= due:
                self.say(line("after"))
                due = time.monotonic() + _LINE_EVERY

        yield advance
        if counts[0] or counts[1]:
            self.say(line("in"))
