"""The ranks of one start as a step of the Slurm job: started by srun itself, or by a torchrun on every node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cluster import slurm
from cluster.errors import ClusterError
from cluster.job import CONFIG, Job
from cluster.run_files import newest_start

LEAVE_S = 5.0
"""So long srun may take to end when its ranks are gone; on a lost node it would wait for much longer."""
TORCHRUN_ENV = {
    # Without it torchrun 2.13 lets the ranks meet in the agents' own store, where those of an earlier round have left
    # their addresses: gloo then connects to the dead.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


class Step:
    """The ranks of one start."""

    def __init__(
        self,
        job_id: str,
        arguments: Sequence[str],
        env: Mapping[str, str],
        has_ranks: Callable[[], bool] = lambda: True,
    ) -> None:
        """Starts srun. `has_ranks` says whether a step that is there has ranks that a signal reaches."""
        self._job_id, self._has_ranks = job_id, has_ranks
        # In a session of its own: what Slurm sends to the batch step goes to the supervisor, which decides.
        self._srun = subprocess.Popen(arguments, env={**os.environ, **env}, start_new_session=True)

    def poll(self) -> int | None:
        """srun's exit code, or None while it runs."""
        return self._srun.poll()

    def signal(self, number: int) -> bool:
        """To every rank, through Slurm: what srun itself is sent may end it first. False before there are ranks."""
        name = "TERM" if number in (signal.SIGTERM, signal.SIGINT) else signal.Signals(number).name[3:]
        ready = self._has_ranks()  # asked first: those that come after the signal have not had it
        return bool(self._to_all(name)) and ready

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


def begin(job: Job, job_id: str, start: int, nodes: list[str], env: Mapping[str, str]) -> Step:
    """Starts the ranks of start number `start` on `nodes`.

    `env` has MASTER_ADDR and MASTER_PORT: where ranks meet, or under torchrun the agents. Output is in
    `logs/start-N/rank-M.out` of the run's folder. Raises OSError.
    """
    logs = Path(job.run) / "logs" / f"start-{start:06d}"
    logs.mkdir(parents=True, exist_ok=True)
    if job.launcher == "srun":
        return Step(job_id, by_srun(job, nodes, logs), env)
    return Step(
        job_id, by_torchrun(job, nodes, logs, f"{job_id}-{start}", f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}"),
        {**env, **TORCHRUN_ENV},
        # Ranks come seconds after the agents, which swallow a signal while there is nobody to pass it on to.
        lambda: newest_start(Path(job.run)) >= start,
    )  # fmt: skip


def by_srun(job: Job, nodes: list[str], logs: Path) -> list[str]:
    """The arguments of a step with one task a rank."""
    return [
        *_srun(job, nodes, job.ranks_per_node, f"{logs}/rank-%t.out"),
        # Not inherited from the job since 22.05.
        *([f"--cpus-per-task={job.cpus_per_rank}"] if job.cpus_per_rank else []),
        *_train(job),
    ]


def by_torchrun(job: Job, nodes: list[str], logs: Path, identity: str, endpoint: str) -> list[str]:
    """The arguments of a step with one task a node: torchrun's agent, which starts the node's ranks.

    Args:
        identity: of this start alone.
        endpoint: host:port on the first node, where the agents meet.
    """
    cores = job.cpus_per_rank and job.cpus_per_rank * job.ranks_per_node
    return [
        *_srun(job, nodes, 1, f"{logs}/agent-%t.out"),
        f"--cpus-per-task={cores}" if cores else "--cpu-bind=none",  # a task's cores are all that its ranks have
        *(job.python, "-m", "cluster.shield", "agent"),
        *(job.python, "-m", "torch.distributed.run"),
        f"--nnodes={len(nodes)}",
        f"--nproc-per-node={job.ranks_per_node}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-id={identity}",
        "--max-restarts=0",  # the supervisor starts again, and knows why
        # A name it must have, and this one nobody sends: its handlers for TERM, INT and HUP would end the ranks.
        "--signals-to-handle=SIGQUIT",
        f"--log-dir={os.devnull}",
        "--no-python",
        *(job.python, "-m", "cluster.shield", "rank", str(logs)),
        *_train(job),
    ]


def _srun(job: Job, nodes: list[str], tasks: int, output: str) -> list[str]:
    return [
        "srun",
        f"--job-name={slurm.RANKS}",
        f"--nodes={len(nodes)}",
        f"--ntasks={len(nodes) * tasks}",
        f"--ntasks-per-node={tasks}",
        f"--nodelist={','.join(nodes)}",
        "--distribution=block",
        "--kill-on-bad-exit=1",  # a rank that is gone takes the others with it
        "--wait=60",  # ... also one that left with 0
        # What a lost node's step still holds on Slurm's books must not keep the next one waiting.
        "--overlap",
        "--mem=0",
        "--unbuffered",
        f"--output={output}",
        *([f"--gpus-per-node={job.gpus_per_node}"] if job.gpus_per_node else []),
    ]


def _train(job: Job) -> list[str]:
    return [job.python, "-m", "pretrain.cli", "train", str(Path(job.folder) / CONFIG)]
