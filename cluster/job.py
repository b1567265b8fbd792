"""What a launched job is: written by `pha launch` into the run's folder, read by the supervisor on its nodes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cluster.errors import ClusterError

JOB, CONFIG, SCRIPT, CODE = "job.json", "config.yaml", "job.sh", "code"
FOLDER = "launch"


@dataclass(frozen=True)
class Job:
    """A run's job on Slurm."""

    run: str
    """The run's folder, absolute."""
    folder: str
    """This launch's own: job.json, config.yaml, job.sh, code/."""
    python: str
    nodes: int
    spare_nodes: int
    ranks_per_node: int
    gpus_per_node: int
    cpus_per_rank: int | None
    batches: list[int]
    """Every global batch of the run: the ranks must divide each."""
    elastic: bool
    """Whether fewer nodes may go on when some are lost."""
    directives: dict[str, str]
    """Options of sbatch, by name."""
    modules: list[str]
    env: dict[str, str]
    interface: str | None
    lead_s: int
    silent_s: dict[str, float]
    """Phase of a heartbeat → seconds until it is no sign of life any more; `` is any other phase."""
    relaunches: int
    successors: int
    launcher: str = "srun"
    """`srun` starts every rank itself, `torchrun` one agent a node that does."""
    elastic_least: float = 0.0
    """The share of the nodes that must be left for that."""
    preflight: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How nodes are looked at before a start (`cluster.preflight`), and where cordoned ones are listed."""

    @property
    def ranks(self) -> int:
        """With all nodes."""
        return self.nodes * self.ranks_per_node

    def save(self) -> None:
        """Writes job.json into its folder."""
        text = json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"
        (Path(self.folder) / JOB).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Reads a folder's job.json. Raises ClusterError."""
        try:
            return cls(**json.loads((folder / JOB).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ClusterError(f"{folder} holds no job that can be read ({error}); launch the run again.") from None


class Scripted(Protocol):
    """What sbatch can be given."""

    @property
    def folder(self) -> str:
        """Absolute; it holds `job.sh`."""

    @property
    def directives(self) -> dict[str, str]:
        """Options of sbatch, by name."""

    @property
    def python(self) -> str:
        """The interpreter on the nodes."""

    @property
    def modules(self) -> list[str]:
        """Loaded before anything else."""

    @property
    def env(self) -> dict[str, str]:
        """Further environment variables."""


def new_folder(run: Path) -> Path:
    """A fresh `launch/000001` in the run's folder. Raises OSError."""
    return numbered_folder(run / FOLDER)


def numbered_folder(parent: Path) -> Path:
    """A fresh `000001` in a folder, which is made if it is missing. Raises OSError."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(path.name) for path in parent.iterdir() if path.name.isdigit()), default=0)
    while True:
        folder = parent / f"{number:06d}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        return folder


def freeze(folder: Path, config: str, packages: Iterable[Path]) -> None:
    """The config and a copy of the code: what a queued or restarted job runs, whatever is edited meanwhile."""
    (folder / CONFIG).write_text(config, encoding="utf-8")
    for package in packages:
        shutil.copytree(package, folder / CODE / package.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def largest_world(nodes: int, ranks_per_node: int, batches: Iterable[int]) -> int:
    """The most nodes, of so many, whose ranks divide every global batch; 0 if not even those of one do."""
    sizes = list(batches)
    fitting = (n for n in range(nodes, 0, -1) if all(size % (n * ranks_per_node) == 0 for size in sizes))
    return next(fitting, 0)


def place(job: Job, held: Sequence[str], good: Sequence[str]) -> list[str]:
    """The nodes that a start of the job uses, in the order of `held`; empty where there are too few.

    Args:
        held: the allocation's, in Slurm's order, which ranks follow.
        good: those of them that can be used, the best first.
    """
    count = min(job.nodes, len(good))
    if count < job.nodes:
        count = largest_world(count, job.ranks_per_node, job.batches) if job.elastic else 0
        if count < job.elastic_least * job.nodes:  # a queue costs hours, a much smaller run days
            return []
    chosen = set(good[:count])
    return [node for node in held if node in chosen]
