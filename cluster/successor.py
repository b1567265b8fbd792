"""The job that follows: it is in the queue from a job's beginning, so that it follows however this one ends.

A supervisor that submitted it only when its own job ends could not do so when its node is lost, or when the last
checkpoint takes longer than Slurm waits. Whoever ends in peace takes it back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cluster import slurm
from cluster.errors import ClusterError
from cluster.job import Job
from cluster.run_files import STOP, checkpoint_steps, events


class Successor:
    """Of one job of a launch."""

    def __init__(self, job: Job, job_id: str, record: Callable[..., None]) -> None:
        """`record` writes an event with its values into the run's record."""
        self.job, self.job_id, self._record = job, job_id, record
        self.run = Path(job.run)
        self.number: str | None = None
        """Of the job that waits; None where there is none."""

    def why_rest(self) -> str:
        """Why this job should not train, in words; empty where it should. Asked once, as the job begins."""
        if (self.run / STOP).exists():
            return f"{self.run / STOP} asks this run not to train; remove that file, and launch it again."
        known = events(self.run)
        followed = [e for e in known if e.get("event") == "successor" and str(e.get("job")) == self.job_id]
        newest = max(checkpoint_steps(self.run), default=-1)
        if followed:  # a job that a person submits tries again whatever was found before
            earlier = str(followed[-1].get("after"))
            if [e.get("decision") for e in known if e.get("event") == "end"][-1:] == ["give up"]:
                return f"Job {earlier} gave the run up before this one began."
            lost = any(e.get("event") == "head lost" and e.get("job") == earlier for e in known)
            if not lost and _was_cancelled(earlier):
                return f"Job {earlier} was cancelled: nobody follows it."
            fruitless = 0
            for begun in reversed([e for e in known if e.get("event") == "job"]):
                if begun.get("checkpoint") != newest or begun.get("folder") != self.job.folder:
                    break
                fruitless += 1
            if fruitless > self.job.relaunches:
                return (
                    f"{fruitless} jobs in a row have brought no new checkpoint, and cluster.relaunches allows no more."
                )
        self._record("job", job=self.job_id, folder=self.job.folder, checkpoint=newest)
        return ""

    def stand(self, exclude: Sequence[str] = (), *, patient: bool = False) -> bool:
        """Sees to it that a job waits for this one's end; whether one does.

        A controller that does not answer costs a `patient` caller up to `slurm.PATIENCE_S`, and others a later try.
        """
        if self.number is not None:
            return True
        mine = [e for e in events(self.run) if e.get("event") == "successor" and e.get("folder") == self.job.folder]
        if len(mine) >= self.job.successors:
            words = f"{len(mine)} jobs have followed in this launch, which is all that cluster.successors allows."
            self._record("no successor", words=words)
            return False
        try:
            self.number = slurm.submit_after(self.job, self.job_id, exclude, patient=patient)
        except ClusterError as error:
            self._record("no successor", words=str(error), exclude=list(exclude))
            # without the excluded nodes there may be too few at all
            return bool(exclude) and self.stand(patient=patient)
        self._record("successor", job=self.number, after=self.job_id, folder=self.job.folder, exclude=list(exclude))
        return True

    def avoid(self, nodes: Sequence[str]) -> None:
        """The job that waits is not to be given these nodes, where there are enough others."""
        if self.number is None or not nodes:
            return
        try:
            slurm.exclude(self.number, [*filter(None, [self.job.directives.get("exclude", "")]), *nodes])
            self._record("exclude", job=self.number, nodes=list(nodes))
        except ClusterError as error:
            self._record("no exclusion", job=self.number, nodes=list(nodes), words=str(error))

    def drop(self) -> None:
        """Takes the job that waits back. A controller that stays silent leaves one that will rest by itself."""
        if self.number is None:
            return
        try:
            slurm.patiently(["scancel", self.number])
            self._record("no successor", job=self.number, words="It was taken back.")
            self.number = None
        except ClusterError as error:
            self._record("no cancellation", job=self.number, words=str(error))


def _was_cancelled(job_id: str) -> bool:
    """By a person; not known is no."""
    try:
        return slurm.state_of(job_id).startswith("CANCELLED") and not slurm.preempted(job_id)
    except ClusterError:
        return False
