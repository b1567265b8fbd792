"""The unit that every source yields."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text with its origin: `id` is unique within `source` (the spec string that the user gave).

    `rejected` names the rule by which its reader has given it up, to be counted and not used: a record that cannot
    stop a build, and must not vanish. Its text is then what could be read of it, for a sample, or nothing.
    """

    id: str
    source: str
    text: str
    rejected: str | None = None
