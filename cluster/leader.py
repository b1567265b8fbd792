"""The first host of a run on several: decides each start, has the other hosts do it, and learns what became of it.

The judgement is the supervisor's, as on one machine; `HostsJob` is the start that it watches.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from cluster.errors import ClusterError
from cluster.hosts import Host, largest_set
from cluster.local import GRACE_S, PEER_LOST, STOPPED, Place, free_port
from cluster.meeting import BEAT_S, KILL, START, STOP, Lead, Meeting, Order, Part, Pulse, Report, new_life
from cluster.run_files import START as MARK
from cluster.run_files import STOP as STOP_FILE
from cluster.supervise import NoPlace, Owner, Started, Supervisor

LOST = 137
"""The exit code of a host that is lost, as of one whose ranks were killed."""
KILL_S = 60.0
"""So long hosts may take to end their ranks; those that live on can publish nothing (`pretrain.fence`)."""
TELL_S = 60.0
"""Between two words about the same hosts that are missing."""


class Ranks(Started, Protocol):
    """The processes of one host."""

    @property
    def codes(self) -> list[int | None]:
        """Of each, None while it runs."""


Begin = Callable[[int, Place, str], Ranks]
"""Starts so many ranks at this place, for the start with this mark. Raises ClusterError."""


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long hosts are waited for [s]."""

    lost_s: float = 20.0
    """Without a sign of life a host is lost."""
    gather_s: float = 300.0
    """The first start waits for hosts that have never reported."""


class Leader(Owner):
    """Gives the orders. All its waiting goes through `sleep`, so that its own signs of life go on."""

    def __init__(
        self,
        run: Path,
        hosts: Sequence[Host],
        begin: Begin,
        fits: Callable[[int], bool],
        elastic: bool = True,
        settings: str = "",
        patience: Patience | None = None,
        tell: Callable[[str], None] = lambda words: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Of the run in this folder, on the first of `hosts`.

        Args:
            fits: whether so many ranks divide every batch.
            elastic: whether fewer hosts may go on when some are lost; otherwise they are waited for.
            settings: a hash of what decides the weights.
        """
        self.run, self.hosts, self.meeting = run, hosts, Meeting(run)
        self._begin, self._fits, self._elastic = begin, fits, elastic
        self.patience, self._say_to_people = patience or Patience(), tell
        self.clock, self._sleep = clock, sleep
        self.lead = Lead(hosts[0].name, new_life(), 0, settings)
        self.reports: dict[str, Report] = {}
        self.pulses = {host.name: Pulse() for host in hosts[1:]}
        self._began, self._next = clock(), clock()
        self._job: HostsJob | None = None
        self.supervisor: Supervisor | None = None
        """Whose owner this is."""

    def sleep(self, seconds: float) -> None:
        """Lets time pass, and gives the signs of life that are due."""
        self._sleep(seconds)
        self.beat()

    def tell(self, words: str) -> None:
        """For people."""
        self._say_to_people(words)

    def beat(self) -> None:
        """Once a second: a sign of life, and a look at those of the others. Raises ClusterError."""
        now = self.clock()
        if now < self._next:
            return
        self._next = now + BEAT_S
        self._say()
        for name, pulse in self.pulses.items():
            report, stamp = self.meeting.report(name)
            pulse.look(stamp, now)
            if report is not None:
                self.reports[name] = report
        known = {self.reports[name].life for name, pulse in self.pulses.items() if pulse.beats}
        self.lead = dataclasses.replace(self.lead, known=sorted(known | set(self.lead.known)))

    def _say(self) -> None:
        self.lead = dataclasses.replace(self.lead, beat=self.lead.beat + 1)
        self.meeting.say(self.lead)

    def give(self, order: Order) -> bool:
        """An order holds from now on; whether the disk took it."""
        if not self.meeting.give(order):
            return False
        self.lead = dataclasses.replace(self.lead, order=order.number)
        self._say()
        return True

    def lost(self, name: str) -> bool:
        """Whether a host has left, or has given no sign of life for too long."""
        report = self.reports.get(name)
        return self.pulses[name].silent_s > self.patience.lost_s or (report is not None and report.left)

    def start(self) -> HostsJob:
        """Starts the ranks on the hosts that are there. Raises NoPlace when asked to stop while it waits for them."""
        chosen = self._gather()
        first, parts = 0, {}
        for host in chosen:
            life = self.lead.life if host is self.hosts[0] else self.reports[host.name].life
            parts[host.name] = Part(first, host.ranks, life)
            first += host.ranks
        mark = Path(os.environ.get(MARK, "")).stem
        order = Order(
            self.meeting.last_number() + 1, self.lead.life, START,
            self.hosts[0].address or self.hosts[0].name, free_port(), first, parts, mark,
        )  # fmt: skip
        if self.supervisor is not None:
            self.supervisor.ranks = first
            self.supervisor.record(
                "start", order=order.number, hosts=[host.name for host in chosen], ranks=first,
                MASTER_ADDR=order.address, MASTER_PORT=str(order.port),
            )  # fmt: skip
        while not self.give(order):
            self.tell(f"supervisor: {self.meeting.folder} cannot be written (is the disk full?); trying again.")
            self._may_go_on()
            self.sleep(10 * BEAT_S)
        try:
            local = self._begin(self.hosts[0].ranks, Place(0, first, order.address, order.port), mark)
        except ClusterError:
            self.give(dataclasses.replace(order, action=KILL))
            raise
        self._job = HostsJob(self, order, local)
        return self._job

    def _gather(self) -> list[Host]:
        """The hosts of the next start, the leader first."""
        before, began = {name: pulse.beats for name, pulse in self.pulses.items()}, self.clock()
        told: tuple[list[str], float] = ([], 0.0)
        while True:
            self.beat()
            self._may_go_on()
            # A sign of life from before this moment may be the last one of a host that has just died.
            alive = {name for name, pulse in self.pulses.items() if pulse.beats > before[name] and not self.lost(name)}
            missing = [host.name for host in self.hosts[1:] if host.name not in alive]
            if not missing:
                return list(self.hosts)
            if self._elastic and all(map(self._given_up, missing)):
                there = [host for host in self.hosts if host.name not in missing]
                if chosen := largest_set(there, self._fits):
                    return chosen
            now = self.clock()
            if now - began > 4 * BEAT_S and (missing != told[0] or now - told[1] > TELL_S):
                told = missing, now
                self.tell(f"supervisor: waiting for {', '.join(missing)}; the same command is to run there.")
            self._sleep(BEAT_S / 5)

    def _given_up(self, name: str) -> bool:
        """Whether it is not waited for; who has never reported may still be about to be started by its person."""
        if self.pulses[name].beats:
            return self.lost(name)
        return self.clock() - self._began > self.patience.gather_s

    def _may_go_on(self) -> None:
        if self.supervisor is not None and self.supervisor.wish is not None:
            raise NoPlace("Asked to stop while hosts were waited for.")
        if (self.run / STOP_FILE).exists():
            raise NoPlace(f"{self.run / STOP_FILE} asks this run not to train; remove that file to go on.")

    def finish(self, code: int) -> None:
        """All hosts that are known leave with this exit code."""
        self.lead = dataclasses.replace(self.lead, ended=code)
        self._say()

    def __enter__(self) -> Leader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._job is not None:
            self._job.end_here()


class HostsJob:
    """The ranks of one start, on all its hosts."""

    def __init__(self, leader: Leader, order: Order, local: Ranks) -> None:
        """`order` has been given, and `local` are the leader's own ranks."""
        self._leader, self._order, self._local = leader, order, local
        self._others = [name for name in order.parts if name != leader.lead.host]
        self._lost: set[str] = set()
        self._code: int | None = None
        self._grace_until: float | None = None

    def poll(self) -> int | None:
        """The common exit code, or None while they run. A failed or lost host ends the others."""
        if self._code is not None:
            return self._code
        self._leader.beat()
        codes = [self._local.poll(), *map(self._code_of, self._others)]
        failed = [code for code in codes if code]
        if not failed and None in codes:
            return None
        if failed and all(code == STOPPED for code in failed) and None in codes:
            # A host whose ranks were asked to stop has saved, and so will the others.
            if self._grace_until is None:
                self._grace_until = self._leader.clock() + GRACE_S
            if self._leader.clock() < self._grace_until:
                return None
        if None in codes:
            self.kill()
        order = {STOPPED: 3, PEER_LOST: 2, LOST: 1}
        self._code = min(failed, key=lambda code: order.get(code, 0), default=0)
        return self._code

    def signal(self, number: int) -> bool:
        """To the leader's ranks at once, and to the others' within about a second; whether the former were there."""
        # A wish for stacks stays here: an order to stop could not be followed by one to go on.
        if self._order.action == START and number != signal.SIGUSR2:
            self._tell(STOP, number)
        return self._local.signal(number)

    def kill(self) -> None:
        """Ends all ranks; returns when they are gone, or their hosts are lost."""
        self._local.kill()
        if self._order.action != KILL:
            self._tell(KILL)
        until = self._leader.clock() + KILL_S
        while any(self._code_of(name) is None for name in self._others) and self._leader.clock() < until:
            self._leader.sleep(BEAT_S / 5)

    def end_here(self) -> None:
        """Ends the leader's own ranks, without waiting for the others."""
        self._local.kill()

    def _tell(self, action: str, number: int = 0) -> None:
        self._order = dataclasses.replace(self._order, action=action, signal=number)
        self._leader.give(self._order)

    def _code_of(self, name: str) -> int | None:
        """None while a host's ranks run, or have not been started yet."""
        report = self._leader.reports[name]
        if report.life == self._order.parts[name].life:
            if (report.of, report.order) == (self._order.life, self._order.number) and report.code is not None:
                return report.code
            if not self._leader.lost(name):
                return None
            words = f"Host {name} has given no sign of life for {self._leader.pulses[name].silent_s:.0f} s."
        else:
            words = f"The supervisor of host {name} has been started anew; its ranks ended with the old one."
        if name not in self._lost:
            self._lost.add(name)
            if self._leader.supervisor is not None:
                self._leader.supervisor.record("host lost", host=name, words=words)
            self._leader.tell(f"supervisor: {words}")
        return LOST
