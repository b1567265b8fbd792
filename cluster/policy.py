"""Why a start of a run ended, by its files, and what to do about it: exit codes alone are lost in launchers.

Each rank leaves `exits/<start>/rank-N.json` when it ends by itself (docs/reliability.md); one that was killed leaves
nothing. The first cause by time decides, and a rank that only lost another one, or was asked to stop, is none.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


class Action(enum.Enum):
    """What a supervisor does next."""

    FINISH = "finish"
    """The run is done, or a person has asked it to rest."""
    RELAUNCH = "relaunch"
    """Start the ranks again where they are."""
    HAND_OVER = "hand over"
    """This allocation ends: let another one go on."""
    GIVE_UP = "give up"
    """Starting again would fail again; a person must look."""


@dataclass(frozen=True)
class Cause:
    """Why a start ended."""

    kind: str
    """Of the rank's note, or `killed` where no rank left one, or `silent` where a supervisor ended it."""
    words: str
    step: int = 0
    rank: int | None = None
    host: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def same_as(self, other: Cause) -> bool:
        """The same failure at the same step: no accident."""
        return (self.kind, self.step, self.words) == (other.kind, other.step, other.words)


# Kind of a rank's note → what to do. What is not here is a failure that a second try may mend.
TABLE = {
    "done": Action.FINISH,
    "stopped": Action.HAND_OVER,
    "bad input": Action.GIVE_UP,
    "busy": Action.RELAUNCH,
    "out of memory": Action.GIVE_UP,
    "overtaken": Action.GIVE_UP,
    "hang": Action.RELAUNCH,
    "silent": Action.RELAUNCH,
    "killed": Action.RELAUNCH,
    "peer lost": Action.RELAUNCH,
    "failed": Action.RELAUNCH,
}

_LAST = ("peer lost", "stopped", "done")
"""Kinds that follow from something else where there is something else."""


def first_cause(notes: Sequence[dict[str, Any]], ranks: int) -> Cause:
    """What ended a start whose ranks left these `notes`, the first by time first; `ranks` is how many there were."""
    for note in sorted(notes, key=lambda note: note.get("kind") in _LAST):
        if note.get("kind") == "peer lost" and len(notes) < ranks:
            break  # whom it lost has left no note
        if note.get("kind") in ("stopped", "done") and any(n.get("kind") == "peer lost" for n in notes):
            continue
        return Cause(
            str(note.get("kind", "failed")), str(note.get("words", "")), int(note.get("step", 0)),
            int(note.get("rank", 0)), str(note.get("host", "")),
        )  # fmt: skip
    missing = sorted(set(range(ranks)) - {int(note.get("rank", -1)) for note in notes})
    named = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
    words = f"Rank {named} left no reason: it was killed, or its node is gone."
    return Cause("killed", words, rank=missing[0] if missing else None)


@dataclass(frozen=True)
class Budget:
    """How often a run is started again without getting further."""

    relaunches: int = 5
    """Failures since the last new checkpoint; then a person must look."""
    first_pause_s: float = 2.0
    longest_pause_s: float = 300.0

    def pause(self, failures: int) -> float:
        """Seconds before the next start, after so many failures since the last new checkpoint: each is twice as long.

        The first start again is at once.
        """
        if failures <= 1:
            return 0.0
        return min(self.first_pause_s * 2.0 ** (failures - 2), self.longest_pause_s)


@dataclass(frozen=True)
class Decision:
    """What to do, when, and why."""

    action: Action
    words: str
    pause_s: float = 0.0


def decide(causes: Sequence[Cause], budget: Budget, stopped_by_file: bool = False) -> Decision:
    """What to do after the last of `causes`, the ends of all starts since the last new checkpoint.

    Args:
        causes: in order, at least one; a start that came to a new checkpoint makes those before it forgotten.
        budget: how many there may be.
        stopped_by_file: a file asks the run to rest: being stopped is then what was wanted.
    """
    cause = causes[-1]
    action = TABLE.get(cause.kind, Action.RELAUNCH)
    if action in (Action.HAND_OVER, Action.RELAUNCH) and stopped_by_file:
        return Decision(Action.FINISH, "The run rests because its STOP file asks for it.")
    if action is not Action.RELAUNCH:
        return Decision(action, cause.words)
    if cause.kind == "failed" and any(cause.same_as(earlier) for earlier in causes[:-1]):
        return Decision(Action.GIVE_UP, f"The same failure at the same step twice is no accident: {cause.words}")
    if len(causes) > budget.relaunches:
        return Decision(
            Action.GIVE_UP,
            f"{len(causes)} starts in a row ended without a new checkpoint, and the budget is {budget.relaunches}; the "
            f"last: {cause.words}",
        )
    return Decision(Action.RELAUNCH, cause.words, budget.pause(len(causes)))


class Blame:
    """Which nodes of a job are the last choice from now on, by how starts on them ended."""

    ONCE = ("silent", "hang")
    """Kinds of an end that is enough."""
    KILLS = 2
    """Of ranks on one node that are: the first may have been an accident."""

    def __init__(self) -> None:
        """Of no node yet."""
        self.nodes: list[str] = []
        self._killed = Counter[str]()

    def hear(self, cause: Cause, used: Sequence[str]) -> None:
        """A start on the `used` nodes has ended like this, and is followed by another one."""
        if cause.host not in used:
            return
        self._killed[cause.host] += cause.kind == "killed"
        if cause.kind in self.ONCE or self._killed[cause.host] >= self.KILLS:
            self.add([cause.host])

    def add(self, nodes: Iterable[str]) -> None:
        """These are, whatever was seen."""
        self.nodes += [node for node in dict.fromkeys(nodes) if node not in self.nodes]
