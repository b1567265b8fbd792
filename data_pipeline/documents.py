"""The unit that every source yields."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text with its origin: `id` is unique within `source` (the spec string that the user gave)."""

    id: str
    source: str
    text: str
