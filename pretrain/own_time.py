"""How long a rank itself computes in a step, before it waits for the others."""

from __future__ import annotations

import time

import torch


class OwnTime:
    """A context around each forward pass; `reading` gives their seconds since it was last asked.

    With ZeRO 0 to 2 a forward pass meets no other rank, so that the time is this rank's alone; what spoils a node
    (heat, a stray process, a bad core) spoils it as much as the rest of the step. On a GPU it is taken by two events
    in the stream, which the host does not wait for.
    """

    def __init__(self, device: torch.device) -> None:
        """On the device that computes."""
        self._device, self._seconds, self._began = device, 0.0, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._used = 0

    def __enter__(self) -> None:
        if self._device.type != "cuda":
            self._began = time.perf_counter()
            return
        if self._used == len(self._events):
            self._events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
        self._events[self._used][0].record()

    def __exit__(self, *_: object) -> None:
        if self._device.type != "cuda":
            self._seconds += time.perf_counter() - self._began
            return
        self._events[self._used][1].record()
        self._used += 1

    def reading(self) -> float:
        """Seconds since the last reading. On a GPU only after a value of the last pass has come to the host."""
        for first, last in self._events[: self._used]:
            self._seconds += first.elapsed_time(last) / 1000.0
        seconds, self._seconds, self._used = self._seconds, 0.0, 0
        return seconds
