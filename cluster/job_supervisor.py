"""The process that a Slurm job runs on its first node: `python -m cluster.job_supervisor LAUNCH_FOLDER`.

It starts the ranks with srun, and when a start ends it takes the first of three ways that is open: the same nodes
again, a spare node of the allocation instead of a lost or blamed one, or a successor job that waits for this one's end
and does not use the blamed nodes.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from cluster import slurm
from cluster.errors import ClusterError
from cluster.health import Health
from cluster.job import CONFIG, Job, largest_world
from cluster.policy import Action, Budget, Cause, Decision
from cluster.run_files import STOP, events, newest_start
from cluster.supervise import HANDED_OVER, Limits, NoPlace, Supervisor

LEAVE_S = 5.0
"""So long srun may take to end when its ranks are gone; on a lost node it would wait for much longer."""
PORTS = (20_000, 20_000)
"""The first one and how many."""


class Step:
    """The ranks of one start: one step of the job."""

    def __init__(self, job_id: str, arguments: list[str], env: dict[str, str]) -> None:
        """Starts srun."""
        self._job_id = job_id
        # In a session of its own: what Slurm sends to the batch step goes to the supervisor, which decides.
        self._srun = subprocess.Popen(arguments, env={**os.environ, **env}, start_new_session=True)

    def poll(self) -> int | None:
        """srun's exit code, or None while it runs."""
        return self._srun.poll()

    def signal(self, number: int) -> bool:
        """To every rank, through Slurm: what srun itself is sent may end it first. False before there is a step."""
        name = "TERM" if number in (signal.SIGTERM, signal.SIGINT) else signal.Signals(number).name[3:]
        return bool(self._to_all(name))

    def kill(self) -> None:
        """Ends the step on every node that answers, and srun, which would wait for those that do not."""
        sent = self._to_all("KILL")
        try:
            self._srun.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self._srun.kill()
            self._srun.wait()
        for one in sent:
            one.poll()

    def _to_all(self, name: str) -> list[subprocess.Popen[bytes]]:
        """Not waited for: scancel waits in turn for nodes that are gone."""
        try:
            steps = slurm.steps_of(self._job_id)
            return [subprocess.Popen(["scancel", f"--signal={name}", step]) for step in steps]
        except (ClusterError, OSError) as error:
            print(f"job supervisor: {error}", file=sys.stderr, flush=True)
            return []


class JobSupervisor:
    """Supervises one job."""

    def __init__(self, job: Job, job_id: str) -> None:
        """Of the job with this number, in which this process runs."""
        self.job, self.job_id = job, job_id
        self.run = Path(job.run)
        self.blamed: list[str] = []
        self.used: list[str] = []
        self.supervisor = Supervisor(
            self.run, job.ranks, self.start, Limits(job.silent_s), Budget(job.relaunches),
            judged=self._judged, straggles=lambda one: self.health.straggles(one),
        )  # fmt: skip
        self.health = Health(job, job_id, self.supervisor.record, lambda: self.supervisor.wish is not None)

    def go(self) -> int:
        """Supervises until the run is done or this job cannot go on; then another one follows, if it should."""
        code = self.supervisor.supervise()
        if code != HANDED_OVER:
            return code
        # The time limit announces itself with USR1; TERM is a preemption, or somebody who cancels the job.
        try:
            cancelled = self.supervisor.wish == signal.SIGTERM and not slurm.preempted(self.job_id)
        except ClusterError:  # not known: a successor too many can be cancelled, and a run without one is lost
            cancelled = False
        if cancelled or (self.run / STOP).exists():
            self.supervisor.record("rest", words=f"Job {self.job_id} was cancelled: nobody follows it.")
            return 0
        return self._hand_over()

    def start(self) -> Step:
        """Starts the ranks on the best nodes that there are. Raises NoPlace where there are too few."""
        nodes = self._choose()
        self.used, self.supervisor.ranks = nodes, len(nodes) * self.job.ranks_per_node
        number = newest_start(self.run) + 1
        logs = self.run / "logs" / f"start-{number:06d}"
        logs.mkdir(parents=True, exist_ok=True)
        env = {"MASTER_ADDR": nodes[0], "MASTER_PORT": str(self._port(nodes[0], number))}
        self.supervisor.record("start", start=number, job=self.job_id, nodes=nodes, ranks=self.supervisor.ranks, **env)
        return Step(self.job_id, self._srun(nodes, logs), env)

    def _srun(self, nodes: list[str], logs: Path) -> list[str]:
        job = self.job
        arguments = [
            "srun",
            f"--nodes={len(nodes)}",
            f"--ntasks={len(nodes) * job.ranks_per_node}",
            f"--ntasks-per-node={job.ranks_per_node}",
            f"--nodelist={','.join(nodes)}",
            "--distribution=block",
            "--kill-on-bad-exit=1",  # a rank that is gone takes the others with it
            "--wait=60",  # ... also one that left with 0
            # What a lost node's step still holds on Slurm's books must not keep the next one waiting.
            "--overlap",
            "--mem=0",
            "--unbuffered",
            f"--output={logs}/rank-%t.out",
        ]
        if job.gpus_per_node:
            arguments.append(f"--gpus-per-node={job.gpus_per_node}")
        if job.cpus_per_rank:
            arguments.append(f"--cpus-per-task={job.cpus_per_rank}")  # not inherited from the job since 22.05
        return [*arguments, job.python, "-m", "pretrain.cli", "train", str(Path(job.folder) / CONFIG)]

    def _choose(self) -> list[str]:
        held = slurm.nodes_of(self.job_id)
        good = self.health.best_first(slurm.answering(held), self.blamed)
        count = min(self.job.nodes, len(good))
        if count < self.job.nodes and self.job.elastic:
            count = largest_world(count, self.job.ranks_per_node, self.job.batches)
        elif count < self.job.nodes:
            count = 0
        if count == 0:
            lost = [node for node in held if node not in good]
            self.blamed += [node for node in lost if node not in self.blamed]
            raise NoPlace(
                f"{len(good)} of the allocation's nodes can be used ({', '.join(lost) or 'none'} lost or left out), "
                f"and the run needs {self.job.nodes}."
            )
        chosen = set(good[:count])
        return [node for node in held if node in chosen]  # in Slurm's order: ranks follow it

    def _judged(self, cause: Cause, decision: Decision) -> None:
        """A node whose rank was silent, or that is lost, is the last choice from now on."""
        self.health.heard(cause)
        if decision.action is Action.RELAUNCH and cause.kind in ("silent", "hang") and cause.host in self.used:
            self.blamed.append(cause.host)

    def _port(self, head: str, number: int) -> int:
        """Of this job and start alone, and free on the head node where that is this one."""
        first, count = PORTS
        for attempt in range(100):
            port = first + (int(self.job_id) * 31 + number * 7 + attempt) % count
            if head != os.environ.get("SLURMD_NODENAME", socket.gethostname()):
                return port
            with socket.socket() as probe:
                try:
                    probe.bind(("", port))
                except OSError:
                    continue
                return port
        raise ClusterError(f"No port from {first} on is free on {head}; end what holds them.")

    def _hand_over(self) -> int:
        handed = sum(1 for event in events(self.run) if event.get("event") == "successor")
        if handed >= self.job.successors:
            words = f"{handed} jobs have followed, which is all that cluster.successors allows."
            self.supervisor.record("rest", words=words)
            return 1
        exclude = self.health.excluded(self.blamed)
        try:
            number = slurm.submit(self.job, after=self.job_id, exclude=exclude)
        except ClusterError as error:  # without those nodes there may be too few at all
            if not exclude:
                raise
            self.supervisor.record("no exclusion", words=str(error))
            exclude = []
            number = slurm.submit(self.job, after=self.job_id)
        self.supervisor.record("successor", job=number, after=self.job_id, exclude=exclude)
        return 0


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
