"""A run of weeks on a cluster whose nodes fail, by a clock that only jumps: the decisions are those of `cluster`.

Simulated are nodes, their failures, Slurm's queue and the time that things take; what follows a failure is asked of the
functions that a job's supervisor asks: `cluster.policy.decide` with its budget and pauses, `cluster.health.Health` for
the order of the nodes and whom a successor does without, and `cluster.job.place` for the nodes of a start.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.deputy import STILL_LOOKS
from cluster.health import Health
from cluster.job import Job, place
from cluster.policy import Action, Blame, Budget, Cause, decide

HOUR, DAY = 3600.0, 86_400.0
LOST, KILLED, HANG, HEAD = "node lost", "rank killed", "hang", "first node lost"
STALLS, FEWER, LIMIT, FIRST, NODES, PERSON = (
    "checkpoint stalls", "fewer nodes", "time limit", "first start", "waiting for nodes", "given up"
)  # fmt: skip


@dataclass(frozen=True)
class Costs:
    """What things take, in seconds."""

    detect: Mapping[str, float]
    """From a failure, by its kind, to the end of the start."""
    relaunch: float
    """From there to the first new step."""
    queue: float
    """Of a successor, when there are nodes for it."""
    stall: float
    """So long training waits for a checkpoint."""
    every: float
    """Training between two checkpoints."""
    durable: float = 0.0
    """From a checkpoint's stall until it can be taken up: it is written behind the training."""
    person: float = 4 * HOUR
    """Until somebody looks at a run that was given up."""
    repair: float = DAY
    """Of a lost node."""


@dataclass(frozen=True)
class Faults:
    """How often nodes fail, and how."""

    node_hours: float
    """Mean time between the failures of one node."""
    kinds: Mapping[str, float]
    """Shares of `LOST`, `KILLED` and `HANG`; the first takes idle nodes too, and the others hit a node's ranks."""
    lemon: float = 1.0
    """One node fails so many times as often as the others."""


@dataclass
class Outcome:
    """Where the seconds of a run went."""

    useful: float = 0.0
    """Of training that counted, at the speed of all nodes."""
    lost: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """By cause: detection, work that was done again, relaunch, pause and queue."""
    by_lemon: float = 0.0
    """Of those, what the lemon caused."""
    failures: int = 0
    """That ended a start."""
    restarts: int = 0
    """In the same allocation."""
    handed_over: int = 0
    given_up: int = 0
    spares_used: int = 0
    """Starts that used a node for the first time which was a spare one."""
    smallest: int = 0
    """Nodes of the smallest start."""

    @property
    def seconds(self) -> float:
        """All of them."""
        return self.useful + sum(self.lost.values())

    @property
    def goodput(self) -> float:
        """The useful share."""
        return self.useful / self.seconds


def job(nodes: int, spares: int, gpus: int, batch: int, elastic: float, relaunches: int = 5) -> Job:
    """As `pha launch` would write it, without a look at the nodes: nothing is asked of a real Slurm.

    `elastic` is the share of the nodes that it goes on with; 1 is none but all.
    """
    return Job(
        run="/nowhere/run", folder="/nowhere/run/launch/000001", python="python", nodes=nodes, spare_nodes=spares,
        ranks_per_node=gpus, gpus_per_node=gpus, cpus_per_rank=None, batches=[batch], directives={},
        modules=[], env={}, interface=None, lead_s=90, silent_s={"": 0.0}, relaunches=relaunches, successors=10_000,
        elastic=elastic < 1, elastic_least=elastic,
    )  # fmt: skip


class Simulation:
    """One run on one cluster, from one seed."""

    def __init__(
        self, job: Job, costs: Costs, faults: Faults, days: float, seed: int,
        pool: int | None = None, limit: float = float("inf"),
    ) -> None:  # fmt: skip
        """Of `job` for so many days.

        Args:
            pool: nodes of the cluster; None is those of the job.
            limit: of an allocation, in seconds.
        """
        self.job, self.costs, self.faults, self.end, self.limit = job, costs, faults, days * DAY, limit
        self._draw = random.Random(seed)
        self.wanted = job.nodes + job.spare_nodes
        self.pool = [f"n{i}" for i in range(max(pool or 0, self.wanted))]
        self.lemon = self.pool[self._draw.randrange(job.nodes)] if faults.lemon != 1.0 else ""
        self.now = 0.0
        self.outcome = Outcome(smallest=job.nodes)
        self._broken: dict[str, float] = {}
        """Node → when it is repaired."""
        self._why = FIRST
        """What the next seconds that are lost are lost to."""
        self._by_lemon = False

    def go(self) -> Outcome:
        """Runs it to its end."""
        avoid: list[str] = []
        while self.now < self.end:
            avoid = _Allocation(self, self._nodes(avoid)).go()
            self.outcome.handed_over += 1
        self.outcome.handed_over -= 1
        return self.outcome

    def _nodes(self, avoid: list[str]) -> list[str]:
        """Those that the next job gets; it waits where there are too few."""
        self.lose(self.costs.queue if self.now else 0.0)
        while True:
            up = [node for node in self.pool if self._broken.get(node, 0.0) <= self.now]
            liked = [node for node in up if node not in avoid]
            # Slurm refuses an exclusion that leaves too few nodes; the successor then does without it.
            if len(up) >= self.wanted:
                return (liked if len(liked) >= self.wanted else up)[: self.wanted]
            repaired = sorted(when for when in self._broken.values() if when > self.now)
            self.lose(repaired[0] - self.now, NODES)

    def lose(self, seconds: float, why: str = "") -> None:
        """Nothing useful happens for so long."""
        self.now += seconds
        self.outcome.lost[why or self._why] += seconds
        self.outcome.by_lemon += seconds if self._by_lemon and not why else 0.0

    def blame(self, why: str, node: str = "") -> None:
        """What is lost from now on is lost to this."""
        self._why, self._by_lemon = why, bool(node) and node == self.lemon

    def breaks(self, node: str) -> None:
        """A node is lost to Slurm until it is repaired."""
        self._broken[node] = self.now + self.costs.repair

    def next_failure(self, used: list[str], idle: list[str]) -> tuple[float, str, str]:
        """(Seconds from now, node, kind) of the first one among these nodes."""
        rate = 1.0 / (self.faults.node_hours * HOUR)
        silent = self.faults.kinds[LOST]  # of an idle node nothing else is noticed

        def total(nodes: list[str]) -> float:
            return rate * (len(nodes) + (self.faults.lemon - 1.0) * (self.lemon in nodes))

        rates = total(used), total(idle) * silent
        seconds = self._draw.expovariate(sum(rates))
        if self._draw.random() * sum(rates) >= rates[0]:
            return seconds, self._which(idle), LOST
        kinds = list(self.faults.kinds)
        kind = self._draw.choices(kinds, [self.faults.kinds[k] for k in kinds])[0]
        return seconds, self._which(used), kind

    def _which(self, nodes: list[str]) -> str:
        weights = len(nodes) + (self.faults.lemon - 1.0) * (self.lemon in nodes)
        if self.lemon in nodes and self._draw.random() * weights < self.faults.lemon:
            return self.lemon
        others = [node for node in nodes if node != self.lemon]
        return others[self._draw.randrange(len(others))]


class _Allocation:
    """One job of the run: what `cluster.job_supervisor` holds."""

    def __init__(self, run: Simulation, held: list[str]) -> None:
        self.run, self.held = run, held
        self.head, self.blame, self.causes = held[0], Blame(), list[Cause]()
        self.health = Health(run.job, "1", lambda event, **values: None, lambda: False)
        self.over = run.now + run.limit
        self.seen: set[str] = set()

    def go(self) -> list[str]:
        """Starts ranks until this allocation ends; returns the nodes that the next one is to do without."""
        run, budget, first = self.run, Budget(self.run.job.relaunches), True
        while run.now < run.end:
            good = self.health.best_first(self.held, self.blame.nodes)
            used = place(run.job, self.held, good)
            if not used:
                return self.health.excluded(self.blame.nodes)
            run.outcome.restarts += not first
            self._note(used, first)
            first = False
            cause = self._start(used)
            if cause is None:  # the run's time or the allocation's is over, or its first node is lost
                break
            decision = decide(self.causes, budget)
            if decision.action is not Action.RELAUNCH:
                run.outcome.given_up += 1
                run.lose(run.costs.person, PERSON)
                break
            self.blame.hear(cause, used)
            run.lose(decision.pause_s)
        return self.health.excluded(self.blame.nodes)

    def _note(self, used: list[str], first: bool) -> None:
        outcome, fresh = self.run.outcome, set(used) - self.seen
        outcome.spares_used += 0 if first else len(fresh)
        outcome.smallest = min(outcome.smallest, len(used))
        self.seen |= set(used)

    def _start(self, used: list[str]) -> Cause | None:
        """One start, to its end; None where the allocation ends with it."""
        run, began = self.run, self.run.now
        until = min(self.over, run.end)
        while True:
            idle = [node for node in self.held if node not in used]
            seconds, node, kind = run.next_failure(used, idle)
            at = run.now + seconds
            if at >= until:
                run.now = began
                self._train(used, until - began, saved=True)
                run.blame(LIMIT)
                return None
            if node in used:
                break
            run.now = at  # no clock of an exponential law remembers
            run.breaks(node)
            self.held.remove(node)
        run.now = began
        head = kind == LOST and node == self.head
        run.outcome.failures += 1
        further = self._train(used, at - began, saved=False, why=HEAD if head else kind, node=node)
        if kind == LOST:
            run.breaks(node)
            self.held.remove(node)
        if head:
            run.lose(float(STILL_LOOKS))
            return None
        run.lose(run.costs.detect[kind])
        cause = Cause("hang" if kind == HANG else "killed", kind, step=len(self.causes), host=node)
        self.causes = [cause] if further else [*self.causes, cause]
        return cause

    def _train(self, used: list[str], seconds: float, saved: bool, why: str = "", node: str = "") -> bool:
        """Books so many seconds of a start, of which the last work is lost or `saved`; whether a checkpoint came."""
        run, costs = self.run, self.run.costs
        starting = min(seconds, costs.relaunch)
        run.lose(starting)  # to what ended the start before
        rest = seconds - starting
        whole = max(0, int((rest - costs.durable) // (costs.every + costs.stall)))
        work, stalls = whole * costs.every, whole * costs.stall
        if saved and rest > stalls + work:
            stall = min(costs.stall, rest - stalls - work)
            work, stalls = rest - stalls - stall, stalls + stall
        speed = len(used) / run.job.nodes
        run.now += work
        run.outcome.useful += work * speed
        run.outcome.lost[FEWER] += work * (1.0 - speed)
        run.lose(stalls, STALLS)
        if why:
            run.blame(why, node)
        run.lose(max(0.0, rest - work - stalls))
        return whole > 0
