"""Where and how a run is launched with `pha launch`. It changes nothing of what is trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from pretrain.section import Section

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.,:=@/+%&|()*\[\]-]+$")]
"""What Slurm takes for a partition, an account, a constraint: no blanks, quotes or anything that a shell reads."""

Option = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z-]*$")]
"""Of sbatch, without its dashes."""

Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Of the environment."""

TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d{1,2}):(\d{2})")


def _may_be_seconds(value: Any) -> Any:
    """YAML takes 12:00:00 without quotes for a number to the base of 60: just these seconds."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        minutes, second = divmod(value, 60)
        hours, minute = divmod(minutes, 60)
        return f"{hours // 24}-{hours % 24:02d}:{minute:02d}:{second:02d}"
    return value


def _is_a_time(value: str) -> str:
    if not TIME.fullmatch(value):
        raise ValueError(f"cluster.time ({value}) must look like 30:00, 12:00:00 or 2-00:00:00")
    return value


Time = Annotated[str, BeforeValidator(_may_be_seconds), AfterValidator(_is_a_time)]
"""A limit as Slurm writes it: MM:SS, HH:MM:SS or D-HH:MM:SS."""


def seconds_of(time: str) -> int:
    """Of a `Time`."""
    match = TIME.fullmatch(time)
    assert match is not None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


class SbatchConfig(Section):
    """What every job on Slurm can be given."""

    memory: Name | None = None
    """Of a node, as Slurm writes it: 200G. None is the partition's default."""
    time: Time | None = None
    """The limit: MM:SS, HH:MM:SS or D-HH:MM:SS; what takes longer goes on in jobs that follow. None is the partition's
    default."""
    partition: Name | None = None
    account: Name | None = None
    qos: Name | None = None
    constraint: Name | None = None
    reservation: Name | None = None
    exclude: tuple[Name, ...] = ()
    """Nodes that are not to be used."""
    options: dict[Option, Name] = Field(default_factory=dict)
    """Further options of sbatch, without their dashes: {switches: "1"}."""
    modules: tuple[Name, ...] = ()
    """Loaded before anything else, with `module load`."""
    python: Path | None = None
    """The interpreter on the nodes; None is the one that launches."""
    env: dict[Variable, str] = Field(default_factory=dict)
    """Further environment variables of the job."""

    def directives(self, **more: object) -> dict[str, str]:
        """Options of sbatch, by name: `more` (with _ for -), and those that are set; None is not set."""
        known = {
            **{name.replace("_", "-"): value for name, value in more.items()},
            "mem": self.memory,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "reservation": self.reservation,
            "exclude": ",".join(self.exclude) or None,
            **self.options,
        }
        return {name: str(value) for name, value in known.items() if value is not None}


class ClusterConfig(SbatchConfig):
    """The job of a run on Slurm."""

    nodes: int = Field(1, ge=1)
    """That train at once."""
    spare_nodes: int = Field(0, ge=0)
    """More nodes in the allocation, which take over from one that is lost."""
    gpus_per_node: int = Field(0, ge=0)
    """0 trains on CPUs."""
    ranks_per_node: int | None = Field(None, ge=1)
    """None is one a GPU, and one on a node without."""
    cpus_per_rank: int | None = Field(None, ge=1)
    launcher: Literal["srun", "torchrun"] = "srun"
    """Who starts the ranks of a node: Slurm, or one torchrun a node. Starting again stays the supervisor's in both."""
    lead_s: int | None = Field(None, ge=1)
    """So long before the limit the run is asked to stop. None is 90 s (Slurm's own rounding) and twice what a
    checkpoint took."""
    interface: Name | None = None
    """The network interface that ranks meet on, such as ib0; None leaves the choice to gloo and NCCL."""
    elastic: bool = True
    """Whether fewer nodes go on, as many as divide every global batch, when there are no spare ones left."""
    elastic_least: float = Field(0.75, ge=0, le=1)
    """The share of the nodes with which a run still goes on; with fewer it waits in the queue for all of them."""
    relaunches: int = Field(5, ge=0)
    """Starts in a row that may end without a new checkpoint."""
    host_lost_s: float = Field(20.0, ge=5.0)
    """With `pha train --hosts`: a host without a sign of life for so long is lost [s]."""
    gather_s: float = Field(300.0, ge=0.0)
    """With `pha train --hosts`: the first start waits so long for hosts that have not reported yet [s]."""
    successors: int = Field(100, ge=0)
    """Jobs that may follow the first one."""
    preflight: bool = True
    """Look at the nodes before the first start in an allocation, and after a start that a node may have ended."""
    preflight_limit_s: float = Field(60, gt=0)
    """So long a node may take to answer; where half of them have answered, the others have less."""
    min_memory_gb: float = Field(1.0, ge=0)
    """[10⁹ bytes] Free memory that a node must have before a start; so too for the file systems that follow."""
    min_tmp_gb: float = Field(0.5, ge=0)
    min_shm_gb: float = Field(0.064, ge=0)
    min_disk_gb: float = Field(1.0, ge=0)
    """Where the run's folder is."""
    min_link_mb_s: float = Field(10.0, ge=0)
    """[10⁶ bytes/s] A sum over all nodes that is slower counts as failed; 0 is never."""
    slow_node: float = Field(0.7, ge=0, lt=1)
    """A node that computes at less than this share of the median is used last; 0 is never."""
    cordon: Path | None = None
    """The list of nodes that are not to be used, which several runs may share. None is cordon.jsonl in the run's
    folder."""
    cordon_hours: float = Field(24.0, gt=0)
    """So long a node stays on it."""
    cordon_stragglers: bool = False
    """Whether a node whose ranks hold the others up is put on it too."""

    @property
    def ranks(self) -> int:
        """Of one node."""
        return self.ranks_per_node or max(1, self.gpus_per_node)

    @property
    def time_s(self) -> int | None:
        """The limit in seconds."""
        return None if self.time is None else seconds_of(self.time)
