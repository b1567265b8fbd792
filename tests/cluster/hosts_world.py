"""Hosts, their ranks and a clock of the test's own, for the tests of several hosts."""

from __future__ import annotations

import json

from cluster import supervise
from cluster.follower import Follower
from cluster.hosts import Host
from cluster.leader import Leader, Patience
from cluster.policy import Budget
from cluster.run_files import START
from cluster.supervise import Limits, Supervisor

HOSTS = [Host("a", 1, "10.0.0.1"), Host("b", 1), Host("c", 1)]


class Ranks:
    """The processes of one host, which do what the test says."""

    def __init__(self, world, host, ranks, place, mark):
        self.host, self.place, self.mark, self.signals = host, place, mark, []
        self.codes = [None] * ranks
        world.started.append(self)

    def poll(self):
        failed = [code for code in self.codes if code]
        return None if None in self.codes else (failed[0] if failed else 0)

    def signal(self, number):
        self.signals.append(number)
        return None in self.codes

    def kill(self):
        self.end(137)

    def end(self, code):
        self.codes = [code if old is None else old for old in self.codes]


class World:
    """Hosts that share a folder. Only `sleep` moves the clock, and then every live follower has its turn."""

    def __init__(self, folder, monkeypatch, hosts=HOSTS):
        self.folder, self.hosts, self.now, self.started, self.told, self.plans = folder, hosts, 100.0, [], [], []
        self.followers, self.exits = {}, {}
        monkeypatch.setattr(supervise.time, "monotonic", lambda: self.now)
        monkeypatch.delenv(START, raising=False)

    def begin(self, host):
        return lambda ranks, place, mark: Ranks(self, host, ranks, place, mark)

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        for name, follower in list(self.followers.items()):
            code = follower.turn()
            if code is not None:
                self.exits[name] = code
                self.followers.pop(name)
        while self.plans and self.plans[0][0]():
            self.plans.pop(0)[1]()
        assert self.now < 10_000, self.told

    def follow(self, name, settings=""):
        """A follower begins, or begins anew: what was there is gone, as with SIGKILL, and its ranks with it."""
        self.die(name)
        host = next(host for host in self.hosts if host.name == name)
        self.followers[name] = Follower(
            self.folder, host, "a", self.begin(name), settings, tell=self.told.append, clock=self.clock
        )

    def die(self, name):
        self.followers.pop(name, None)
        for ranks in self.started:
            if ranks.host == name:
                ranks.end(137)

    def lead(self, fits=lambda ranks: True, elastic=True, budget=5):
        """A supervisor on the first host, which has not begun yet."""
        leader = Leader(
            self.folder, self.hosts, self.begin("a"), fits, elastic, "", Patience(20.0, 60.0), self.told.append,
            self.clock, self.sleep,
        )  # fmt: skip
        limits = Limits({"": 600.0})
        leader.supervisor = Supervisor(self.folder, 3, leader, limits, Budget(budget), leader.sleep)
        return leader

    def of(self, name):
        """What one host has started, in order."""
        return [ranks for ranks in self.started if ranks.host == name]

    def when(self, condition, action):
        """Plans are carried out in order."""
        self.plans.append((condition, action))

    def running(self, count):
        """Whether so many starts have begun, and the last one runs."""
        return lambda: len(self.of("a")) == count and all(None in r.codes for r in self.started[-1:])

    def all_end(self, code):
        """All ranks leave by themselves, with a note as ranks have it."""
        kind = {0: "done", 75: "stopped"}[code]
        start = len(list((self.folder / "generations").glob("*"))) + 1
        for place in ("generations", f"exits/{start:06d}"):
            (self.folder / place).mkdir(parents=True, exist_ok=True)
        mark = self.of("a")[-1].mark
        (self.folder / "generations" / f"{start:06d}.json").write_text(json.dumps({"mark": mark}))
        note = {"rank": 0, "kind": kind, "time": self.now}
        (self.folder / "exits" / f"{start:06d}" / "rank-0.json").write_text(json.dumps(note))
        for ranks in self.started:
            ranks.end(code)

    def go(self, leader):
        code = leader.supervisor.supervise()
        leader.finish(code)
        for _ in range(20):
            self.sleep(0.2)
        return code
