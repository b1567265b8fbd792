"""Where and how `pha data build --launch` builds: the section `cluster` of a build's file. It changes no byte."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from pretrain.cluster_config import SbatchConfig, seconds_of


class ArrayConfig(SbatchConfig):
    """The job array of a build on Slurm."""

    tasks: int = Field(4, ge=1, le=100_000)
    """Of the array. They share the work as they come: more than run at once are spare ones."""
    at_once: int | None = Field(None, ge=1)
    """At most so many run at the same time; None leaves it to Slurm."""
    cpus_per_task: int = Field(1, ge=1)
    """A task does so many units of work at once, each in a process of its own."""
    lead_s: int = Field(60, ge=1)
    """So long before the limit a task lets go of its work, and another one follows it."""
    silent_s: float = Field(90.0, gt=0.0)
    """A task without a sign of life for so long is taken for dead: others do its units again. It must be longer than
    the shared file system takes to show what another node has written (NFS: up to 60 s)."""
    tries: int = Field(4, ge=1)
    """So often a unit of work may fail, or be lost with the task that did it, until the build is given up."""
    restarts: int = Field(5, ge=0)
    """How often in a row a task's process may be started again."""
    successors: int = Field(100, ge=0)
    """How many jobs may follow one task."""

    @model_validator(mode="after")
    def _time_is_left(self) -> Self:
        if self.time is not None and seconds_of(self.time) <= self.lead_s + 60:
            raise ValueError(
                f"cluster.time ({self.time}) leaves no time to work: {self.lead_s} s before its end (cluster.lead_s), "
                "and by Slurm's rounding up to a minute earlier, a task lets go of its work"
            )
        return self

    def directives(self, **more: object) -> dict[str, str]:
        """Options of sbatch, by name, `more` among them."""
        array = f"1-{self.tasks}" + (f"%{self.at_once}" if self.at_once is not None else "")
        return super().directives(array=array, nodes=1, ntasks=1, cpus_per_task=self.cpus_per_task, **more)
