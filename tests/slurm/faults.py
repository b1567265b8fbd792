"""What is done to a run on the test bed: each fault is a function that does it and returns."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.run_files import events
from tests.e2e.runs import training
from tests.slurm import bed

PATIENCE_S = 240.0
HOG = (
    "import os,pathlib as p;p.Path('{group}/cgroup.procs').write_text(str(os.getpid()));"
    "p.Path('/proc/{pid}/oom_score_adj').write_text('1000');"
    "a=[bytearray(b'x'*(64<<20)) for _ in range(200)]"
)
"""Uses up the memory of the cgroup that it moves into, where the kernel then ends the rank first."""


@dataclass
class Scene:
    """A launched run, and the moment of the fault."""

    run: Path
    job: str = ""
    at: float = 0.0
    """When the fault was done, by the clock; 0 before."""
    steps_before: int = 0
    """On record at that moment."""
    keep: dict[str, Any] = field(default_factory=dict)
    """What a fault leaves for the check after it."""

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The supervisors' events of starts, in order."""
        return [e for e in events(self.run) if e["event"] == "start"]

    def node(self, rank: int) -> str:
        """That the newest start's rank runs on."""
        newest = self.starts[-1]
        return newest["nodes"][rank * len(newest["nodes"]) // newest["ranks"]]

    def pid(self, rank: int) -> int:
        """Of the rank, as its node numbers it."""
        return int(json.loads((self.run / "heartbeats" / f"rank-{rank}.json").read_text())["pid"])

    def steps(self) -> int:
        """The newest one on record."""
        return max(training(self.run), default=0)

    def happens(self) -> None:
        """The fault is done now."""
        self.at, self.steps_before = time.time(), self.steps()

    def send(self, name: str, rank: int) -> None:
        """A signal to a rank."""
        bed.enter(self.node(rank), "kill", f"-{name}", str(self.pid(rank)), check=True)


def wait(condition, words: str) -> None:
    """Raises RuntimeError with the words after `PATIENCE_S`."""
    bed.wait_until(condition, PATIENCE_S, words)


def killed_rank(scene: Scene) -> None:
    scene.send("KILL", 1)
    scene.happens()


def stopped_rank(scene: Scene) -> None:
    scene.send("STOP", 1)
    scene.happens()


def killed_slurmd(scene: Scene) -> None:
    bed.enter(scene.node(1), "pkill", "-9", "-x", "slurmd", check=True)
    scene.happens()


def killed_stepd(scene: Scene) -> None:
    bed.enter(scene.node(1), "pkill", "-9", "-x", "slurmstepd", check=True)
    scene.happens()


def crashed_node(scene: Scene) -> None:
    bed.crash(scene.node(1))
    scene.happens()


def crashed_first_node(scene: Scene) -> None:
    bed.crash(scene.node(0))
    scene.happens()


def unplugged_node(scene: Scene) -> None:
    node = scene.node(1)
    bed.cable(node, "down")
    scene.happens()
    time.sleep(25.0)  # the fault itself: longer than Slurm's patience with a node
    bed.cable(node, "up")


def cut_data_network(scene: Scene) -> None:
    bed.cable(scene.node(1), "down", ["eth1"])
    scene.happens()


def rebooted_node(scene: Scene) -> None:
    node = scene.node(1)
    bed.crash(node)
    scene.happens()
    bed.boot(node)


def drained_node(scene: Scene) -> None:
    bed.told("scontrol", "update", f"nodename={scene.node(1)}", "state=drain", "reason=drill")
    scene.happens()


def signalled_job(scene: Scene) -> None:
    bed.told("scancel", "--signal=USR1", scene.job)
    scene.happens()


def nothing(scene: Scene) -> None:
    scene.happens()


def time_limit(scene: Scene) -> None:
    """It comes by itself; its moment is when the ranks have left for it."""
    wait(lambda: any(e["event"] == "end" for e in events(scene.run)), "the end of the time")
    scene.at = next(e["time"] for e in events(scene.run) if e["event"] == "end") - 1e-3


def preempted_job(scene: Scene) -> None:
    bed.told("sbatch", "-p", "urgent", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")
    scene.happens()


def used_up_memory(scene: Scene) -> None:
    node, pid = scene.node(1), scene.pid(1)
    places = bed.enter(node, "cat", f"/proc/{pid}/cgroup", capture_output=True).stdout.splitlines()
    inside = next(line.split(":")[2] for line in places if ":memory:" in line)
    hog = HOG.format(group=f"/sys/fs/cgroup/memory{inside}", pid=pid)
    scene.happens()
    bed.enter(node, "timeout", "20", "python3", "-c", hog, capture_output=True)


def full_disk(scene: Scene) -> None:
    fill(scene.node(1))
    scene.send("KILL", 1)
    scene.happens()


def fill(node: str) -> None:
    """The node's shared memory is a disk of 1 MiB, and full."""
    bed.enter(node, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm", check=True)
    bed.enter(node, "dd", "if=/dev/zero", "of=/dev/shm/full", "bs=64k", stderr=subprocess.DEVNULL)


def killed_while_saving(scene: Scene) -> None:
    saving = scene.run / "checkpoints"
    wait(lambda: any(saving.glob(".writing-*")), "a checkpoint that is written")
    for rank in (0, 1):
        scene.send("KILL", rank)
    scene.happens()


def lost_two_nodes(scene: Scene) -> None:
    nodes = scene.node(2), scene.node(3)
    for node in nodes:
        bed.crash(node)
    scene.happens()


def restarted_controller(scene: Scene) -> None:
    """And a rank dies while there is no controller: the next start has to wait for it."""
    bed.enter(bed.LOGIN, "pkill", "-9", "-x", "slurmctld", check=True)
    scene.send("KILL", 1)
    scene.happens()
    time.sleep(10.0)  # the fault itself
    bed.enter(bed.LOGIN, "slurmctld", check=True)


def old_start_lives_on(scene: Scene) -> None:
    """The only rank's node is cut off, and the rank stands still until the next start has trained; then it goes on."""
    node, pid = scene.node(0), scene.pid(0)
    scene.send("STOP", 0)
    bed.cable(node, "down")
    scene.happens()
    wait(lambda: len(scene.starts) == 2, "the next start")
    known = scene.steps()
    wait(lambda: scene.steps() > known, "a step of the next start")
    scene.keep["alive"] = bed.enter(node, "kill", "-CONT", str(pid)).returncode == 0
