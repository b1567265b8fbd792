"""The error that the model package shows to its user."""

from __future__ import annotations


class ModelError(Exception):
    """A sentence for the user: it names the thing, the rule that it breaks, and the fix."""
