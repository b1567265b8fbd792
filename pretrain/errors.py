"""Errors for people, and the exit codes that a supervisor understands."""

from __future__ import annotations

from typing import Final

EXIT_DONE: Final = 0
"""The run reached its last step (or the command did its work)."""
EXIT_FATAL: Final = 1
"""Something failed that a restart would not mend."""
EXIT_BAD_INPUT: Final = 2
"""What the user gave is wrong: one sentence on standard error says what, and how to mend it."""
EXIT_REQUEUE: Final = 75
"""The run stopped on request, after a checkpoint; start it again and it continues (BSD's EX_TEMPFAIL)."""


EXIT_PEER_LOST: Final = 76
"""This rank left only because another one had; that one's words tell why."""


EXIT_OVERTAKEN: Final = 77
"""The run has been started again elsewhere; this process has left and must not be started again."""


class RunError(Exception):
    """A problem whose message is one sentence for the user: the thing, the rule and the fix."""

    exit_code: int = EXIT_BAD_INPUT


class RunFailed(RunError):
    """The run, rather than what the user typed, is in trouble: a disk, a checkpoint, the loss."""

    exit_code = EXIT_FATAL


class Overtaken(RunError):
    """A later start of the run exists."""

    exit_code = EXIT_OVERTAKEN


class PeerLost(RunError):
    """Another rank left in the middle of a collective."""

    exit_code = EXIT_PEER_LOST
