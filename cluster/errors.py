"""Errors for people who start and watch runs."""

from __future__ import annotations


class ClusterError(Exception):
    """A problem whose message is one sentence for the user: the thing, the rule and the fix."""
