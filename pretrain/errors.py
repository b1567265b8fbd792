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


COLLECTIVE_FAILED: Final = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""How the libraries say that a collective failed because a rank is gone."""

_NO_MEMORY: Final = ("can't allocate memory", "out of memory")
"""How torch says that the host's allocator, or a GPU's under another name, has no more."""


def lost_a_peer(error: BaseException) -> bool:
    """Whether an error of torch or DeepSpeed only tells that another rank is gone."""
    return any(words in str(error) for words in COLLECTIVE_FAILED)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error tells that the host's or the device's memory is used up."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


class RunError(Exception):
    """A problem whose message is one sentence for the user: the thing, the rule and the fix."""

    exit_code: int = EXIT_BAD_INPUT
    kind: str = ""
    """For those who start runs again; empty is the exit code's (`pretrain.exits`)."""


class RunFailed(RunError):
    """The run, rather than what the user typed, is in trouble: a disk, a checkpoint, the loss."""

    exit_code = EXIT_FATAL


class Busy(RunError):
    """Another process trains the run at this moment; a start of long ago may still be dying."""

    kind = "busy"


class Overtaken(RunError):
    """A later start of the run exists."""

    exit_code = EXIT_OVERTAKEN


class PeerLost(RunError):
    """Another rank left in the middle of a collective."""

    exit_code = EXIT_PEER_LOST
