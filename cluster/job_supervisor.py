"""The process that a Slurm job runs on its first node: `python -m cluster.job_supervisor LAUNCH_FOLDER`.

It starts the ranks with srun, and when a start ends it takes the first of three ways that is open: the same nodes
again, a spare node of the allocation instead of a lost or blamed one, or a successor job that waits for this one's end
and does not use the blamed nodes.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from cluster import slurm
from cluster.deputy import COUNT, Pulse, arguments
from cluster.errors import ClusterError
from cluster.health import Health
from cluster.job import Job, place
from cluster.policy import Action, Blame, Budget, Cause, Decision
from cluster.run_files import STOP, newest_start, save_seconds
from cluster.step import Step, begin
from cluster.stragglers import Straggler
from cluster.successor import Successor
from cluster.supervise import HANDED_OVER, Limits, NoPlace, Owner, Supervisor

MARGIN_S = 30.0
"""For the ranks to come to the end of a step, and to leave."""
LEAD_AGE_S = 60.0
"""Seconds until the run's records are read again for what a checkpoint takes."""
PORTS = (20_000, 20_000)
"""The first one and how many."""


class JobSupervisor(Owner):
    """Supervises one job."""

    def __init__(self, job: Job, job_id: str) -> None:
        """Of the job with this number, in which this process runs."""
        self.job, self.job_id = job, job_id
        self.run = Path(job.run)
        self.blame = Blame()
        self.used: list[str] = []
        self.supervisor = Supervisor(self.run, job.ranks, self, Limits(job.silent_s), Budget(job.relaunches))
        self.health = Health(job, job_id, self.supervisor.record, lambda: self.supervisor.wish is not None)
        self.successor = Successor(job, job_id, self.supervisor.record)
        self.cancelled = False
        self._end: float | None = None
        self._lead = (float(job.lead_s), -math.inf)
        self._overtaken = False

    def go(self) -> int:
        """Supervises until the run is done or this job cannot go on; then another one follows, if it should."""
        if words := self.successor.why_rest():
            self.supervisor.record("rest", job=self.job_id, words=words)
            return 0
        self.successor.stand()
        with Pulse(Path(self.job.folder), self.job_id):
            self._appoint()
            code = self.supervisor.supervise()
        if code != HANDED_OVER:
            if not self._overtaken:  # then the jobs are the other one's
                self.successor.drop()
            return code
        if self.supervisor.wish is not None:
            self.wished(self.supervisor.wish)
        if self.cancelled or (self.run / STOP).exists():
            self.successor.drop()
            self.supervisor.record(
                "rest", job=self.job_id, words=f"Job {self.job_id} was cancelled: nobody follows it."
            )
            return 0
        avoid = self.health.excluded(self.blame.nodes)
        if not self.successor.stand(avoid, patient=True):
            return 1
        self.successor.avoid(avoid)
        return 0

    def _appoint(self) -> None:
        """Deputies on the last nodes, which are the spare ones where there are any."""
        nodes = [node for node in slurm.nodes_of(self.job_id) if node != _this_node()][-COUNT:]
        if nodes:
            subprocess.Popen(arguments(self.job, self.job_id, _this_node(), nodes), start_new_session=True)

    def wished(self, number: int) -> None:
        """The time limit announces itself with USR1; TERM is a preemption, or somebody who cancels the job.

        Slurm may end this process before the ranks have saved, so who is cancelled takes the successor back at once.
        """
        if number != signal.SIGTERM or self.cancelled:
            return
        try:
            self.cancelled = not slurm.preempted(self.job_id)
        except ClusterError:  # not known: a successor too many can be cancelled, and a run without one is lost
            return
        if self.cancelled:
            self.successor.drop()

    def due(self) -> int | None:
        """Slurm announces the limit by a lead that was fixed when the job was submitted; this one knows the saves."""
        now = time.time()
        if self._end is None or now < self._end - self._lead_s():
            return None
        asked, self._end = self._end, self._end_of_time()  # somebody may have given it more time
        return signal.SIGUSR1 if self._end == asked else None

    def _end_of_time(self) -> float | None:
        try:
            return slurm.end_of(self.job_id)
        except ClusterError:  # the ranks must hear in time, whether the controller answers or not
            return self._end

    def _lead_s(self) -> float:
        lead, when = self._lead
        if time.monotonic() > when + LEAD_AGE_S:
            lead = max(float(self.job.lead_s), MARGIN_S + 2 * (save_seconds(self.run) or 0.0))
            self._lead = lead, time.monotonic()
        return lead

    def start(self) -> Step:
        """Starts the ranks on the best nodes that there are. Raises NoPlace where there are too few."""
        self.successor.stand()  # where the first try met no controller
        self._end = self._end_of_time()
        nodes = self._choose()
        self.used, self.supervisor.ranks = nodes, len(nodes) * self.job.ranks_per_node
        number = newest_start(self.run) + 1
        env = {"MASTER_ADDR": nodes[0], "MASTER_PORT": str(self._port(nodes[0], number))}
        self.supervisor.record("start", start=number, job=self.job_id, nodes=nodes, ranks=self.supervisor.ranks, **env)
        return begin(self.job, self.job_id, number, nodes, env)

    def _choose(self) -> list[str]:
        held = slurm.nodes_of(self.job_id)
        good = self.health.best_first(slurm.answering(held, self.job.nodes), self.blame.nodes)
        if chosen := place(self.job, held, good):
            return chosen
        lost = [node for node in held if node not in good]
        self.blame.add(lost)
        raise NoPlace(
            f"{len(good)} of the allocation's nodes can be used ({', '.join(lost) or 'none'} lost or left out), "
            f"and the run needs {self.job.nodes}."
        )

    def judged(self, cause: Cause, decision: Decision) -> None:
        """A node whose rank was silent, or that is lost, is the last choice from now on."""
        self._overtaken = cause.kind == "overtaken"
        self.health.heard(cause)
        if decision.action is Action.RELAUNCH:
            self.blame.hear(cause, self.used)

    def straggles(self, straggler: Straggler) -> None:
        """Its node may be cordoned, where the config asks for that."""
        self.health.straggles(straggler)

    def _port(self, head: str, number: int) -> int:
        """Of this job and start alone, and free on the head node where that is this one."""
        first, count = PORTS
        for attempt in range(100):
            port = first + (int(self.job_id) * 31 + number * 7 + attempt) % count
            if head != _this_node():
                return port
            with socket.socket() as probe:
                try:
                    probe.bind(("", port))
                except OSError:
                    continue
                return port
        raise ClusterError(f"No port from {first} on is free on {head}; end what holds them.")


def _this_node() -> str:
    return os.environ.get("SLURMD_NODENAME", socket.gethostname())


def main() -> None:
    """Supervises the job that this process is in; a problem is one sentence on standard error."""
    began = time.monotonic()
    try:
        code = JobSupervisor(Job.load(Path(sys.argv[1])), os.environ["SLURM_JOB_ID"]).go()
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = 2
    print(f"job supervisor: ends with {code} after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
