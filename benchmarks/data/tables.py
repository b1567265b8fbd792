"""Tables with goals, and all that was measured for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.data.runner import Outcome
from benchmarks.tables import Cell, Table, shown


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


@dataclass(kw_only=True)
class Section(Table):
    """One section's table, goals, remarks and everything that was measured."""

    key: str
    goals: list[Goal] = field(default_factory=list)
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

    def notes(self) -> list[str]:
        """The goals, then the remarks."""
        return [*(f"Goal: {goal.line()}." for goal in self.goals), *self.remarks]


def ratio(value: float | None, base: float | None) -> float | None:
    """The one over the other, None where either was not measured."""
    return None if value is None or not base else value / base
