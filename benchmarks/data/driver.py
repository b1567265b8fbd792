"""Drives any reader through one measurement: an epoch's speed, its completeness, its states, or a resume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from benchmarks.data.measure import Meter
from benchmarks.data.stream import Digest, fingerprint

if TYPE_CHECKING:  # its import costs seconds, and not every reader needs it
    import torch


class Reader(Protocol):
    """One library's way to read the stream in epoch-shuffled batches; its constructor opens nothing."""

    def open(self) -> None:
        """Open the dataset, as a training process would at its start."""

    def batches(self, state: Any) -> Iterator[torch.Tensor]:
        """Batches of one epoch, integers [B, T] (ours: [B, T + 1] or T), from a state on; None begins at the start."""

    def state(self, consumed: int) -> Any:
        """The state, as JSON, after so many batches of :meth:`batches`."""

    def inputs(self, batch: torch.Tensor) -> np.ndarray:
        """Of a batch the integers by which it is recognised, [B, T]."""


def drive(reader: Reader, mode: str, stops: list[int] | None = None, state_file: str | None = None) -> dict[str, Any]:
    """Do one measurement.

    Args:
        reader: what reads.
        mode: ``speed`` measures an epoch (the dataset is open before); ``check`` reads one, sums it up and keeps a
            state at every stop; ``resume`` measures from nothing to the first batch.
        stops: for ``check``, the numbers of batches after which the state is taken.
        state_file: for ``resume``, a JSON file of the state; None begins at the start.

    Returns:
        speed: wall_s, cpu_s, items (sequences), bytes. check: rows, order, tokens, count, and states: for each stop
        its state and the fingerprint of the batch that follows. resume: wall_s, cpu_s, and the batch's fingerprint,
        None if none comes.
    """
    if mode == "speed":
        return _speed(reader)
    if mode == "resume":
        state = json.loads(Path(state_file).read_text(encoding="utf-8")) if state_file else None
        with Meter() as meter:
            reader.open()
            first = next(iter(reader.batches(state)), None)
        if first is None:  # a state that lost what it held, so near to the end that nothing is left
            return _result(meter, 0, 0) | {"batch": None}
        return _result(meter, len(first), first.nbytes) | {"batch": fingerprint(reader.inputs(first))}
    reader.open()
    return _check(reader, set(stops or []))


def _speed(reader: Reader) -> dict[str, Any]:
    reader.open()
    items = bytes_ = 0
    with Meter() as meter:
        for batch in reader.batches(None):
            items += len(batch)
            bytes_ += batch.nbytes
    return _result(meter, items, bytes_)


def _check(reader: Reader, stops: set[int]) -> dict[str, Any]:
    digest, found, state = Digest(), dict[str, Any](), None
    for number, batch in enumerate(reader.batches(None)):
        rows = reader.inputs(batch)
        digest.add(rows)
        if number in stops:
            found[str(number)] = {"state": state if number else None, "batch": fingerprint(rows)}
        if number + 1 in stops:
            state = json.loads(json.dumps(reader.state(number + 1)))
    sums = {"rows": digest.rows, "order": digest.order, "tokens": digest.tokens, "count": digest.count}
    return sums | {"states": found}


def _result(meter: Meter, items: int, bytes_: int) -> dict[str, Any]:
    return {"wall_s": meter.wall_s, "cpu_s": meter.cpu_s, "items": items, "bytes": bytes_}


def whole_rows(batch: torch.Tensor) -> np.ndarray:
    """What most readers are recognised by: the batch itself."""
    return batch.numpy()
