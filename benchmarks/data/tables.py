"""Tables with goals, as values for JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.data.runner import Outcome

Cell = str | float | None


@dataclass(frozen=True)
class Goal:
    """What a figure should reach: its words, the figure (None where it was not measured) and whether it does."""

    text: str
    value: float | None
    met: bool | None

    @classmethod
    def least(cls, text: str, value: float | None, bound: float) -> Goal:
        """A figure that should be at least `bound`."""
        return cls(text, value, None if value is None else value >= bound)

    @classmethod
    def most(cls, text: str, value: float | None, bound: float) -> Goal:
        """A figure that should be at most `bound`."""
        return cls(text, value, None if value is None else value <= bound)

    def line(self) -> str:
        """For people."""
        verdict = {True: "met", False: "missed", None: "not measured"}[self.met]
        return f"{self.text}: {shown(self.value)} ({verdict})" if self.value is not None else f"{self.text}: {verdict}"


@dataclass
class Section:
    """One section's table, goals, remarks and everything that was measured."""

    key: str
    title: str
    columns: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    checks: dict[str, Any] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def add(self, outcome: Outcome, *cells: Cell) -> None:
        """A row; of a contestant without figures the first cell says why."""
        if outcome.problem is None:
            self.rows.append([outcome.label, *cells])
            return
        missing = outcome.problem.startswith("not installed")
        self.rows.append([outcome.label, "not installed" if missing else "failed", *[None] * (len(self.columns) - 2)])
        if not missing:
            self.remarks.append(f"{outcome.label}: {outcome.problem}")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": self.rows,
            "goals": [{"text": goal.text, "value": goal.value, "met": goal.met} for goal in self.goals],
            "remarks": self.remarks,
            "checks": self.checks,
            "contestants": {key: outcome.as_dict() for key, outcome in self.outcomes.items()},
        }

    def cells(self) -> list[tuple[str, ...]]:
        """The rows as text."""
        return [tuple(shown(cell) for cell in row) for row in self.rows]

    def markdown(self) -> str:
        """The section as Markdown."""
        lines = [f"### {self.title}", "", _row(self.columns), _row(["---", *["---:"] * (len(self.columns) - 1)])]
        lines += [_row(cells) for cells in self.cells()]
        lines += ["", *(f"* Goal: {goal.line()}." for goal in self.goals), *(f"* {text}" for text in self.remarks)]
        return "\n".join(lines).rstrip() + "\n"


def shown(value: Cell) -> str:
    """A cell as people read it: three digits or more."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    for bound, digits in ((100, 0), (10, 1), (1, 2), (0.001, 3)):
        if abs(value) >= bound:
            return f"{value:,.{digits}f}"
    return f"{value:,.5f}" if value else "0"


def ratio(value: float | None, base: float | None) -> float | None:
    """The one over the other, None where either was not measured."""
    return None if value is None or not base else value / base


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
