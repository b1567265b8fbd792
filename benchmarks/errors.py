"""The error of a benchmark that cannot go on."""

from __future__ import annotations


class BenchError(Exception):
    """One sentence for people: what failed, and what to do."""
