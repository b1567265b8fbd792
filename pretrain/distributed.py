"""Who this process is among the ranks, and how ranks agree.

The same command runs alone, under `torchrun` and under Slurm's `srun`: the place is read from the
environment. Decisions (stop, a save that failed, which checkpoint) are agreed over a gloo group on the CPU,
so that no rank goes on alone and no accelerator is made to wait.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pretrain.errors import PeerLost, RunError


@dataclass(frozen=True)
class World:
    """This process's place: global rank, rank on its node, and the number of ranks."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Rank 0 writes what is written once."""
        return self.rank == 0


def discover(env: Mapping[str, str]) -> World:
    """The place that torchrun's or Slurm's variables give; alone when there are none.

    Raises RunError when a launcher set only some of the variables.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in env]
        if missing:
            raise RunError(f"The launcher set RANK or WORLD_SIZE but not {', '.join(missing)}; set all four or none.")
        try:
            size = int(env["WORLD_SIZE"])
            local_size = int(env.get("LOCAL_WORLD_SIZE", size))
            return World(int(env["RANK"]), int(env.get("LOCAL_RANK", 0)), size, local_size)
        except ValueError as error:
            raise RunError(
                f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers ({error}); mend or unset them."
            ) from None
    if "SLURM_STEP_ID" in env and int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        # SLURM_STEP_TASKS_PER_NODE reads like "4(x2),3"; the first figure is good for sharing a node's cores.
        per_node = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        return World(
            int(env["SLURM_PROCID"]),
            int(env["SLURM_LOCALID"]),
            int(env["SLURM_STEP_NUM_TASKS"]),
            int(per_node.group()) if per_node else 1,
        )
    return World()


def rendezvous(env: Mapping[str, str]) -> tuple[str, int]:
    """Address and port of rank 0's store: the launcher's, else from the Slurm job, else a free local one."""
    if "MASTER_ADDR" in env and "MASTER_PORT" in env:
        return env["MASTER_ADDR"], int(env["MASTER_PORT"])
    if "SLURM_STEP_NODELIST" in env and int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        job, step = int(env["SLURM_JOB_ID"]), int(env["SLURM_STEP_ID"])
        return first_host(env["SLURM_STEP_NODELIST"]), 20_000 + (job * 31 + step) % 20_000
    return "127.0.0.1", free_port()


def first_host(nodelist: str) -> str:
    """The first host of a Slurm list: `gpu[03-05,9],cpu1` gives `gpu03`."""
    head = re.match(r"([^\[,]+)(?:\[([0-9]+)[^\]]*\])?([^,\[]*)", nodelist)
    if head is None:
        raise RunError(f"Cannot read the node list '{nodelist}' that Slurm gave; set MASTER_ADDR and MASTER_PORT.")
    return "".join(part or "" for part in head.groups())


def free_port() -> int:
    """A TCP port that was free on the loopback interface a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _naming_the_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(peer_lost_words(error)) from error


def peer_lost_words(error: Exception) -> str:
    """What to say when a collective failed: not this rank's fault."""
    reason = str(error).strip().splitlines()
    return f"Another rank left ({reason[0] if reason else type(error).__name__}); its own log tells why."


class Ranks:
    """The joined process group, with the few collectives on small CPU values that the run needs."""

    def __init__(self, world: World, timeout_s: float) -> None:
        """Joins the group (nccl on GPUs, gloo otherwise) and makes the gloo group for agreements."""
        self.world = world
        address, port = rendezvous(os.environ)
        # DeepSpeed and the libraries under it read these, whoever launched us.
        os.environ.update(
            RANK=str(world.rank),
            LOCAL_RANK=str(world.local_rank),
            WORLD_SIZE=str(world.size),
            MASTER_ADDR=address,
            MASTER_PORT=str(port),
        )
        self.device = torch.device("cuda", world.local_rank) if torch.cuda.is_available() else torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        timeout = datetime.timedelta(seconds=timeout_s)
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=timeout)
        except (dist.DistError, RuntimeError) as error:
            raise RunError(
                f"Rank {world.rank} of {world.size} could not meet the others at {address}:{port}: "
                f"{str(error).splitlines()[0]}; check that the address is reachable and every rank was started."
            ) from None
        self.group = dist.new_group(backend="gloo", timeout=timeout)

    def sum(self, *values: float) -> list[float]:
        """The sums over all ranks, in float64."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def largest(self, *values: float) -> list[float]:
        """The maxima over all ranks, in float64."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def all_true(self, flag: bool) -> bool:
        """True on every rank if it is true on every rank."""
        return self._reduce([float(flag)], dist.ReduceOp.MIN)[0] == 1.0

    def from_main(self, value: int) -> int:
        """Rank 0's integer, on every rank."""
        tensor = torch.tensor([value], dtype=torch.int64)
        if self.world.size > 1:
            with _naming_the_lost():
                dist.broadcast(tensor, src=0, group=self.group)
        return int(tensor.item())

    def barrier(self) -> None:
        """Waits until every rank is here."""
        self.all_true(True)

    def close(self) -> None:
        """Leaves the group; only when all ranks leave well. After an error it would wait for the others."""
        dist.destroy_process_group()

    def _reduce(self, values: tuple[float, ...] | list[float], op: dist.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(list(values), dtype=torch.float64)
        if self.world.size > 1:
            with _naming_the_lost():
                dist.all_reduce(tensor, op=op, group=self.group)
        result: list[float] = tensor.tolist()
        return result
