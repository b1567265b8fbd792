"""A host of a run that does not lead: obeys the leader's orders, and says what has become of its ranks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from cluster.errors import ClusterError
from cluster.hosts import Host
from cluster.leader import LOST, Begin, Patience, Ranks
from cluster.local import Place
from cluster.meeting import BEAT_S, KILL, START, STOP, Lead, Meeting, Order, Pulse, Report, new_life
from cluster.supervise import HANDED_OVER, POLL_S, STOP_SIGNALS

LEAVE_S = 10.0
"""So long a follower that was itself asked to stop waits for the leader's last word once its ranks have saved."""


class Follower:
    """The ranks of one host."""

    def __init__(
        self,
        run: Path,
        host: Host,
        leader: str,
        begin: Begin,
        settings: str = "",
        patience: Patience | None = None,
        tell: Callable[[str], None] = lambda words: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Of the run in this folder, on `host`; `leader` is the name of the first host."""
        self.host, self.leader, self.meeting = host, leader, Meeting(run)
        self._begin, self._settings, self._patience, self._tell = begin, settings, patience or Patience(), tell
        self._clock, self._sleep = clock, sleep
        self.life = new_life()
        self.wish: int | None = None
        """The first signal that asked this process to stop."""
        self._pulse, self._beat, self._next = Pulse(), 0, clock()
        self._job: Ranks | None = None
        self._obeyed: Order | None = None
        self._code: int | None = None
        self._codes: list[int | None] = []
        self._signalled: int | None = None
        self._leave_at: float | None = None
        self._told = ""

    def follow(self) -> int:
        """Follows until the leader says how the run has ended; returns that exit code. Raises ClusterError."""
        old = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        try:
            while (code := self.turn()) is None:
                self._sleep(POLL_S)
            return code
        finally:
            self._end()
            self._say(left=True)
            for number, handler in old.items():
                signal.signal(number, handler)

    def turn(self) -> int | None:
        """Looks after the ranks, and once a second after the leader; returns the exit code when it is to leave."""
        changed = self._look_after_ranks()
        now = self._clock()
        if self.wish is not None:
            if self._running:
                self._signal(self.wish)
            elif self._obeyed is None or (self._leave_at is not None and now > self._leave_at):
                return HANDED_OVER
            elif self._leave_at is None:
                self._leave_at = now + LEAVE_S
        if now >= self._next or changed:
            self._next = now + BEAT_S
            self._say()
            return self._follow(now)
        return None

    @property
    def _running(self) -> bool:
        return self._job is not None and self._code is None

    def _look_after_ranks(self) -> bool:
        """Whether something has become of them since the last time."""
        if self._job is None or self._code is not None:
            return False
        self._code = self._job.poll()
        before, self._codes = self._codes, self._job.codes
        return self._codes != before or self._code is not None

    def _follow(self, now: float) -> int | None:
        lead, stamp = self.meeting.lead()
        self._pulse.look(stamp, now)
        silent = self._pulse.silent_s > self._patience.lost_s
        if silent and self._running:
            self._end()
            self._inform(f"the leader {self.leader} has given no sign of life, and the ranks here were ended")
        elif silent or not self._pulse.beats:
            self._inform(f"waiting for the leader {self.leader}")
        if lead is None:
            return None
        if self.life in lead.known:
            self._check(lead)
            if lead.ended is not None:
                return lead.ended
        self._obey(lead, silent)
        return None

    def _check(self, lead: Lead) -> None:
        if lead.host != self.leader:
            raise ClusterError(
                f"{lead.host} leads this run, and the host file here begins with {self.leader}; give the same file on "
                "every host."
            )
        if lead.settings != self._settings:
            raise ClusterError(
                f"The leader {lead.host} trains with other settings of the model, the data or the training; give the "
                "same config and overrides on every host."
            )

    def _obey(self, lead: Lead, silent: bool) -> None:
        if self._running and self._obeyed is not None and lead.life != self._obeyed.life:
            self._end()
            self._inform(f"the leader {self.leader} has been started anew, and the ranks of its old life were ended")
        order = self.meeting.order(lead.order) if lead.order else None
        if order is None or order.life != lead.life:
            return
        known = self._obeyed is not None and (self._obeyed.life, self._obeyed.number) == (order.life, order.number)
        part = order.parts.get(self.host.name)
        ours = part is not None and part.life == self.life
        if not known and self._running:
            self._end()  # the leader goes on without this host, or with another start
        if not ours:
            return
        if not known:
            self._obeyed, self._signalled, self._leave_at = order, None, None
            self._job, self._code, self._codes = None, LOST, []
            if order.action == START and not silent and self.wish is None:
                self._start(order)
            self._say()
        elif order.action == KILL:
            self._end()
        elif order.action == STOP and self._running:
            self._signal(order.signal)

    def _start(self, order: Order) -> None:
        part = order.parts[self.host.name]
        last = part.first + part.ranks - 1
        self._inform(f"start {order.number}: ranks {part.first} to {last} of {order.world}")
        try:
            self._job = self._begin(part.ranks, Place(part.first, order.world, order.address, order.port), order.mark)
        except ClusterError as error:
            self._inform(str(error))
            return
        self._code, self._codes = None, self._job.codes

    def _signal(self, number: int) -> None:
        """Once a start: the ranks remember it."""
        if self._job is not None and self._signalled is None and self._job.signal(number):
            self._signalled = number

    def _end(self) -> None:
        """SIGKILL to the ranks that run; the leader is told."""
        if self._job is None or self._code is not None:
            return
        self._job.kill()
        code = self._job.poll()
        self._code, self._codes = LOST if code is None else code, self._job.codes
        self._say()

    def _say(self, left: bool = False) -> None:
        self._beat += 1
        of, order = (self._obeyed.life, self._obeyed.number) if self._obeyed is not None else ("", 0)
        self.meeting.say(
            Report(self.host.name, self.life, self._beat, os.getpid(), of, order, self._codes, self._code, left)
        )

    def _inform(self, words: str) -> None:
        """The same words only once."""
        if words != self._told:
            self._told = words
            self._tell(f"host {self.host.name}: {words}.")

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.wish is None:
            self.wish = number
