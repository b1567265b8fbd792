"""Keeps a run going: starts its ranks, watches them from outside, and starts them again until it is done.

It reads only the run's folder (heartbeats, exits, checkpoints), so it names the guilty rank also where the ranks
themselves cannot: a stopped process writes nothing, but its heartbeat stands still while the others' say "waiting".
What it did and why is in `supervisor.jsonl`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from cluster.policy import Action, Budget, Cause, Decision, decide, first_cause
from cluster.run_files import (
    START,
    STOP,
    checkpoint_steps,
    exit_notes,
    heartbeats,
    mark_file,
    newest_start,
    record,
    refusal,
    start_of,
)
from cluster.stragglers import Straggler, StragglerWatch

POLL_S = 0.2
LOOK_S = 1.0
"""Between two looks into the run's folder."""
OUTSIDE_S = 45.0
"""That a rank's own watchdog comes before: it knows more, and takes up to 30 s for its last words."""
FROZEN_S = 5.0
"""Longer than this no look at the ranks takes; time in which this process itself stood still is no rank's silence."""
FOLLOW_S = 5.0
"""So long after a rank has failed by itself the others may take to leave."""
STACKS_S = 2.0
"""So long ranks have to write their stacks before they are killed."""
LINGER_S = 60.0
"""So long the processes of ranks that have all said why they left may take to end: the first one writes a sample."""
WELL = ("done", "stopped")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
DONE, GAVE_UP, BAD_INPUT, HANDED_OVER = 0, 1, 2, 75


class NoPlace(Exception):
    """There is nowhere to start the ranks; the message says why."""


class Started(Protocol):
    """The processes of one start."""

    def poll(self) -> int | None:
        """Their common exit code, or None while they run."""

    def signal(self, number: int) -> bool:
        """Sends a signal to every rank; whether there was one that it could be sent to."""

    def kill(self) -> None:
        """Ends all of them, whatever they do."""


class Owner:
    """Whom a supervisor works for: who starts the ranks, and hears what becomes of them. All but `start` may stay."""

    def start(self) -> Started:
        """Starts the ranks. Raises NoPlace where there is nowhere to."""
        raise NotImplementedError

    def due(self) -> int | None:
        """Asked once a second: a signal to stop with, because time is up."""
        return None

    def wished(self, number: int) -> None:
        """The ranks have been passed the first signal to stop."""

    def judged(self, cause: Cause, decision: Decision) -> None:
        """A start has ended like this."""

    def straggles(self, straggler: Straggler) -> None:
        """A rank holds the others up."""

    def tell(self, words: str) -> None:
        """What is to be done, in words for people."""


@dataclass(frozen=True)
class Limits:
    """Seconds without a heartbeat after which a rank counts as silent, by phase of its last one; 0 is never."""

    by_phase: Mapping[str, float]
    """`` is any phase that is not named."""

    def of(self, phase: str, own: float | None = None) -> float:
        """The limit of a phase; `own` is that of the rank's watchdog now, which comes first where it can."""
        limit = self.by_phase.get(phase, self.by_phase[""])
        return min(limit, own + OUTSIDE_S) if own and limit else limit


class Supervisor:
    """Starts a run until it is done, handed over or given up."""

    def __init__(
        self,
        run: Path,
        ranks: int,
        owner: Owner,
        limits: Limits,
        budget: Budget | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Of the run in this folder, which so many ranks train."""
        self.run_folder, self.ranks, self.owner, self.limits = run, ranks, owner, limits
        self.budget, self._sleep, self._slow = budget or Budget(), sleep, StragglerWatch()
        self._mark, self._before, self._own = "", 0, 0
        self._causes: list[Cause] = []
        self._seen: dict[int, tuple[dict[str, Any], float]] = {}
        self.wish: int | None = None
        """The first signal that asked this process to stop."""

    def supervise(self) -> int:
        """Returns 0 when the run is done, 1 when a person must look, 75 when it was asked to stop and has saved."""
        old = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        try:
            while self.wish is None:
                decision = self._one_start()
                if decision.action is not Action.RELAUNCH:
                    return {Action.FINISH: DONE, Action.HAND_OVER: HANDED_OVER}.get(decision.action, GAVE_UP)
                over = time.monotonic() + decision.pause_s
                while self.wish is None and time.monotonic() < over:
                    self._sleep(POLL_S)
            return HANDED_OVER  # asked to stop between two starts: nothing is lost by leaving now
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            os.environ.pop(START, None)

    def _one_start(self) -> Decision:
        saved, began = checkpoint_steps(self.run_folder), time.monotonic()
        self._mark_next_start()
        try:
            started = self.owner.start()
        except NoPlace as error:
            self.record("no place", words=str(error))
            return Decision(Action.HAND_OVER, str(error))
        silent = self._watch(started, time.monotonic())  # the look at the nodes is no rank's silence
        ended = self._number()
        if silent is not None:
            cause = silent
        elif ended == 0:
            cause = self._not_joined(started.poll())
        else:
            cause = self._who(first_cause(exit_notes(self.run_folder, ended), self.ranks), ended)
        if max(checkpoint_steps(self.run_folder), default=-1) > max(saved, default=-1):
            self._causes.clear()  # it got further: the budget is new
        self._causes.append(cause)
        decision = decide(self._causes, self.budget, (self.run_folder / STOP).exists())
        self.record(
            "end", start=ended, seconds=round(time.monotonic() - began, 1), cause=cause.as_dict(),
            decision=decision.action.value, words=decision.words, pause_s=decision.pause_s,
        )  # fmt: skip
        self.owner.judged(cause, decision)
        self.owner.tell(
            f"supervisor: start {ended} ended at step {cause.step} ({cause.kind}): {decision.words} "
            f"Next: {decision.action.value}."
        )
        return decision

    def _mark_next_start(self) -> None:
        """Another supervisor's ranks, or an earlier start's, must not be taken for this one's."""
        self._mark, self._before, self._own = uuid.uuid4().hex[:12], newest_start(self.run_folder), 0
        os.environ[START] = str(mark_file(self.run_folder, self._mark))
        self._seen = {rank: (beat, -math.inf) for rank, beat in heartbeats(self.run_folder).items()}
        self._slow = StragglerWatch()

    def _number(self) -> int:
        """Of the start that is watched; 0 while its ranks have not joined the run."""
        if not self._own:
            self._own = start_of(self.run_folder, self._mark, self._before)
        return self._own

    def _not_joined(self, code: int | None) -> Cause:
        told = refusal(self.run_folder, self._mark)
        if told:
            return first_cause([told], 1)
        kind = "bad input" if code == BAD_INPUT else "killed"
        return Cause(kind, "The ranks ended before they had joined the run; their output says why.")

    def _who(self, cause: Cause, start: int) -> Cause:
        """A rank's watchdog tells of a hang, and most often of another rank's: one that could say nothing itself.

        A rank that was killed says nothing either: its node is known where all who said nothing were on one.
        """
        beats = [beat for beat, when in self._seen.values() if when > -math.inf]  # of this start
        notes = exit_notes(self.run_folder, start)
        if cause.kind == "killed":
            cause = dataclasses.replace(cause, step=max((int(beat["step"]) for beat in beats), default=cause.step))
        if cause.kind == "killed" and notes:
            hosts = {str(beat["host"]) for beat in beats} - {str(note.get("host")) for note in notes}
            return dataclasses.replace(cause, host=hosts.pop()) if len(hosts) == 1 else cause
        if cause.kind != "hang" or not beats:
            return cause
        # One that was frozen may wake for a moment when the others are ended: only who tells of a hang has been awake.
        spoke = {note.get("rank") for note in notes if note.get("kind") == "hang"}
        mute = [beat for beat in beats if beat["rank"] not in spoke]
        behind = min(mute or beats, key=lambda beat: (beat["step"], beat["time"]))
        return dataclasses.replace(cause, rank=int(behind["rank"]), host=str(behind["host"]))

    def _watch(self, started: Started, began: float) -> Cause | None:
        """Waits for the ranks' end; ends them when one is silent, and then says which."""
        passed_on, failed_at, left_at, look_at, before = False, math.inf, math.inf, began, began
        while started.poll() is None:
            now = time.monotonic()
            if now - before > FROZEN_S:  # nobody was watching: a suspended job, or a controller that was waited for
                self._seen = {rank: (beat, when + now - before) for rank, (beat, when) in self._seen.items()}
            before = now
            if now >= look_at:  # the folder may be on a network, and have thousands of ranks' files
                look_at = now + LOOK_S
                self.wish = self.wish or self.owner.due()
                if self.wish is not None and not passed_on:
                    passed_on = started.signal(self.wish)
                    if passed_on:
                        self.owner.wished(self.wish)
                notes = exit_notes(self.run_folder, self._number())
                if failed_at == math.inf and self._has_failed(notes):
                    failed_at = now + FOLLOW_S
                if left_at == math.inf and len(notes) >= self.ranks:
                    left_at = now + LINGER_S
                silent = self._silent(began)
                if silent is not None:
                    self.record("silent", cause=silent.as_dict())
                    if started.signal(signal.SIGUSR2):  # every rank writes its stacks; one that is frozen does not
                        self._sleep(STACKS_S)
                    started.kill()
                    return silent
            if now > min(failed_at, left_at):  # the others cannot leave, their node is gone, or nobody buries them
                started.kill()
                return None
            self._sleep(POLL_S)
        return None

    def _has_failed(self, notes: list[dict[str, Any]]) -> bool:
        told = notes or [refusal(self.run_folder, self._mark)]
        return any(note.get("kind", "done") not in WELL for note in told)

    def _silent(self, began: float) -> Cause | None:
        """The rank that is furthest behind, if some rank has been silent for too long."""
        now = time.monotonic()
        for rank, beat in heartbeats(self.run_folder).items():
            foreign = beat["start"] not in (0, self._number())  # an overtaken rank may live on for a while
            if not foreign and self._seen.get(rank, ({}, 0.0))[0] != beat:
                self._seen[rank] = (beat, now)  # by our own clock: others' may jump, and each host has its own
        beats = [(beat, now - when) for beat, when in self._seen.values() if when >= began]
        for straggler in self._slow.look(beat for beat, _ in beats):
            self.record("straggler", start=self._number(), **dataclasses.asdict(straggler),
                        words=straggler.words)  # fmt: skip
            self.owner.straggles(straggler)
        if not beats:
            limit = self.limits.of("start")
            words = f"No rank has given a sign of life for {now - began:.0f} s (limit {limit:g} s)."
            return Cause("silent", words) if 0 < limit < now - began else None
        late = [
            (beat, age)
            for beat, age in beats
            if beat["phase"] not in ("done", "stopped") and 0 < self.limits.of(beat["phase"], beat["limit_s"]) < age
        ]
        if not late:
            return None
        # Ranks that wait for another one are silent too. The guilty one has done the fewest steps, or was silent first.
        guilty, age = min(late, key=lambda found: (found[0]["step"], -found[1]))
        limit = self.limits.of(guilty["phase"], guilty["limit_s"])
        words = (
            f"Rank {guilty['rank']} on {guilty['host']} has given no sign of life for {age:.0f} s in phase "
            f"{guilty['phase']} (limit {limit:g} s)."
        )
        return Cause("silent", words, int(guilty["step"]), int(guilty["rank"]), str(guilty["host"]))

    def record(self, event: str, **values: Any) -> None:
        """Adds a line to `supervisor.jsonl`."""
        record(self.run_folder, event, **values)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.wish is None:
            self.wish = number
