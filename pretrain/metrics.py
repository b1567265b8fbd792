"""`metrics.jsonl`: the run's record, one JSON object a line, never ahead of the checkpoint that was resumed."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pretrain.files import write_atomic

log = logging.getLogger(__name__)

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """All records in order. A last line that was cut short by a kill is left out; a missing file is empty."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def rewind(path: Path, step: int) -> int:
    """Removes the records of steps after `step`; they will be made again. Returns how many were removed.

    What is removed is appended to `metrics.superseded.jsonl`, so that the two tellings of the same steps can
    be compared.
    """
    records = read(path)
    kept = [r for r in records if r["step"] <= step]
    removed = [r for r in records if r["step"] > step]
    if removed:
        with path.with_suffix(".superseded.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(_line(r) for r in removed)
    if path.exists():
        write_atomic(path, "".join(_line(r) for r in kept))
    return len(removed)


class MetricsFile:
    """Appends records to metrics.jsonl; those that a full disk does not take wait in memory, and the run goes on."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("ab", buffering=0)
        self._waiting = b""

    def write(self, record: Record) -> None:
        """Appends one record; a kill after this call does not lose it, where the disk took it."""
        had_room = not self._waiting
        self._waiting += _line(record).encode()
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if had_room:
                log.warning("%s takes no more records (%s); they are kept until it does.", self._path, error.strerror)

    def close(self) -> None:
        """Closes the file."""
        if self._waiting:
            log.error("%s has not taken the last %d bytes of records; they are lost.", self._path, len(self._waiting))
        self._file.close()


class Throughput:
    """Tokens per second and the share of time spent waiting for data, since the last reading.

    Only time between `start` and `stop` counts: validation and checkpoints are not training.
    """

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._waited = 0.0
        self._started = time.perf_counter()

    def start(self) -> None:
        """A step begins."""
        self._started = time.perf_counter()

    def stop(self, tokens: float, waited_s: float) -> None:
        """The step has ended: it trained on so many tokens and waited so long for its batch."""
        self._seconds += time.perf_counter() - self._started
        self._tokens += tokens
        self._waited += waited_s

    def reading(self) -> tuple[float, float]:
        """Tokens per second and the waiting share, since the last call."""
        seconds = max(self._seconds, 1e-9)
        result = self._tokens / seconds, min(1.0, self._waited / seconds)
        self._tokens = self._seconds = self._waited = 0.0
        return result


def utilisation(reached: float, peak: float) -> float:
    """Model FLOP/s over the peak of all devices, between 0 and 1.

    A share that cannot be (a peak that is none, a count that is wrong) is NaN: better no figure than a false one.
    """
    share = reached / peak if peak > 0 else math.nan
    return share if 0 <= share <= 1 else math.nan


def utilisation_by_part(flops: dict[str, float], rate: float, peak: float) -> Record:
    """`mfu` and how much of it each part of the model is, bottom-up: they add up to it.

    Args:
        flops: a token's, by part, and `total`.
        rate: tokens per second.
        peak: FLOP/s of all devices.
    """
    total = utilisation(rate * flops["total"], peak)
    if math.isnan(total):
        return {"mfu": total}
    parts = {part: round(utilisation(rate * value, peak), 6) for part, value in flops.items() if part != "total"}
    return {"mfu": total, "mfu_parts": parts}


def selected(shares: list[float]) -> Record:
    """The field for the share of tokens that attended in each selective layer; none where nothing is selected."""
    return {"selected": [round(share, 5) for share in shares]} if shares else {}


def of_kind(records: Iterable[Record], kind: str) -> list[Record]:
    """The records of one kind: `train`, `validation` or `event`."""
    return [r for r in records if r["kind"] == kind]


def _line(record: Record) -> str:
    # NaN and infinity are not JSON; they are written as null, which every reader understands.
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(clean) + "\n"
