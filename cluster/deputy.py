"""Watches the supervisor from other nodes of its job: `python -m cluster.deputy LAUNCH_FOLDER NODE`.

A job with --no-kill outlives the loss of its first node, where the supervisor runs, and would then hold its other nodes
idle until its time is over (seen with Slurm 22.05). So the supervisor leaves a pulse in the launch's folder, and when
it stands still a deputy ends the job; the one that waits in the queue goes on. A node that is cut off from Slurm alone
has a pulse, but no way to start anything: a deputy also ends the job when Slurm has taken the supervisor's node away.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cluster import slurm
from cluster.errors import ClusterError
from cluster.job import Job
from cluster.run_files import record

PULSE_S = 2.0
STILL_LOOKS = 30
"""Looks, one a second, that find the same pulse. Not seconds: a job that was suspended has not been looking."""
ASK_LOOKS = 15
"""Looks between two questions to Slurm."""
COUNT = 2
"""Deputies of a job: they cost nothing, and a node may be lost together with the first one."""
NAME = "deputy"


class Pulse:
    """Beats in a thread of its own while the context is open, whatever the supervisor waits for."""

    def __init__(self, folder: Path, job_id: str) -> None:
        """Of the job with this number, in its launch's folder."""
        self._path = pulse_file(folder, job_id)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while True:
            try:
                self._path.write_text(str(time.monotonic_ns()), encoding="utf-8")
            except OSError as error:  # a full disk: the deputies see a file that stands still, and another job goes on
                print(f"job supervisor: no pulse: {error}", file=sys.stderr, flush=True)
            if self._ended.wait(PULSE_S):
                return


def pulse_file(folder: Path, job_id: str) -> Path:
    """Where the supervisor of this job leaves its pulse."""
    return folder / f"pulse-{job_id}"


def arguments(job: Job, job_id: str, head: str, nodes: list[str]) -> list[str]:
    """srun's, for deputies on these nodes, which survive the loss of each other; the supervisor is on `head`."""
    return [
        "srun",
        f"--job-name={NAME}",
        f"--nodes={len(nodes)}",
        f"--ntasks={len(nodes)}",
        "--ntasks-per-node=1",
        f"--nodelist={','.join(nodes)}",
        "--no-kill",
        "--overlap",
        "--mem=0",
        "--gres=none",
        f"--output={job.run}/logs/deputy-{job_id}-%t.out",
        job.python, "-m", "cluster.deputy", job.folder, head,
    ]  # fmt: skip


def watch(pulse: Path, held: Callable[[], bool], sleep: Callable[[float], None] = time.sleep) -> str:
    """Returns why the supervisor is lost, in words.

    Args:
        pulse: what cannot be read has not been looked at.
        held: whether the job still has the supervisor's node, as far as is known.
    """
    seen, looks, count = "", 0, 0
    while looks < STILL_LOOKS:
        sleep(1.0)
        count += 1
        if count % ASK_LOOKS == 0 and not held():
            return "Slurm has taken its node from the job."
        try:
            found = pulse.read_text(encoding="utf-8")
        except OSError:
            continue
        looks = looks + 1 if found == seen else 0
        seen = found
    return f"It has had no pulse for {STILL_LOOKS} looks."


def _holds(job_id: str, node: str) -> bool:
    try:
        return node in slurm.hostnames(slurm.command(["squeue", "--noheader", "--jobs", job_id, "--format=%N"]).strip())
    except ClusterError:  # a deputy that is cut off itself ends nothing
        return True


def main() -> None:
    """Watches until the job is over, or ends it."""
    job, job_id = Job.load(Path(sys.argv[1])), os.environ["SLURM_JOB_ID"]
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # `scancel --signal` sends them to all steps; they are for ranks
        signal.signal(number, signal.SIG_IGN)
    head = sys.argv[2]
    why = watch(pulse_file(Path(job.folder), job_id), lambda: _holds(job_id, head))
    words = f"The supervisor of job {job_id} on {head} is lost: {why}"
    print(words, flush=True)
    record(Path(job.run), "head lost", job=job_id, words=words)
    slurm.patiently(["scancel", job_id])


if __name__ == "__main__":
    main()
