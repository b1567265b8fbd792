"""Tables of figures as text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Cell = str | float | None


@dataclass
class Table:
    """A table and what must be said about it; cells are figures, words, or None where there is nothing."""

    title: str
    columns: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def cells(self) -> list[tuple[str, ...]]:
        """The rows as text."""
        return [tuple(shown(cell) for cell in row) for row in self.rows]

    def notes(self) -> list[str]:
        """What stands below the table, a line each."""
        return self.remarks

    def markdown(self) -> str:
        """The table as Markdown, under a heading."""
        lines = [f"### {self.title}", "", _row(self.columns), _row(["---", *["---:"] * (len(self.columns) - 1)])]
        lines += [_row(cells) for cells in self.cells()]
        lines += ["", *(f"* {text}" for text in self.notes())]
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


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
