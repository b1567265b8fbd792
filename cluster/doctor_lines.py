"""What `pha doctor` says: lines with a state, what was found, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One line."""

    name: str
    state: str
    """`ok`, `warning` (training is possible) or `missing` (it is not)."""
    found: str
    advice: str = ""
    """The consequence and the fix, or what a setting means for a run."""


def ok(name: str, found: str, advice: str = "") -> Line:
    """All is well; `advice` is what it means."""
    return Line(name, "ok", found, advice)


def warning(name: str, found: str, advice: str) -> Line:
    """Something is not as it should be, and training is possible."""
    return Line(name, "warning", found, advice)


def missing(name: str, found: str, advice: str) -> Line:
    """Without this there is no training here."""
    return Line(name, "missing", found, advice)


def possible(lines: Iterable[Line]) -> bool:
    """Whether training is."""
    return all(line.state != "missing" for line in lines)
