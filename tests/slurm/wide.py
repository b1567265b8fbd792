"""Harm to a job of 32 nodes on a real Slurm, as a table: `python -m tests.slurm.wide [--only NAME] [--write FILE]`.

`pha launch`, the supervisor, its deputies, the look at the nodes and Slurm are the real ones; a rank is
`tests.slurm.dummy`, which has no torch, so that 32 nodes fit on two cores. What a start takes here is that of the
launcher, and not of torch. Each drill has a cluster of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.tables import Table
from cluster.run_files import events
from tests.slurm import bed, dummy, faults
from tests.slurm.faults import Scene, wait
from tests.slurm.program import NOTICED, left_out, program

SECTION = "make slurm-wide"
NODES, SPARES, BATCH, STEPS, EVERY, AT = 30, 2, 840, 200, 20, 50
STEP_S, LIMIT_S = 0.2, 20.0
CONFIG = f"""
model: {{preset: pha-nano}}
data: {{path: DATA, seq_len: 32}}
train: {{steps: {STEPS}, global_batch: {BATCH}}}
checkpoint: {{every: {EVERY}}}
logging: {{wandb: disabled}}
watchdog: {{step_s: {LIMIT_S}, save_s: {LIMIT_S}}}
"""
PYTHON = """#!/bin/sh
# The interpreter of the drills: ranks and the trial of links are stand-ins without torch.
export PYTHONPATH="$PYTHONPATH:{root}"
case "$2" in
    pretrain.cli|pretrain.link_probe) exec {python} -S -m tests.slurm.dummy "$@" ;;
esac
exec {python} "$@"
"""


class WideScene(Scene):
    """A launched run of stand-ins."""

    def trained(self) -> list[dict]:
        """What rank 0 has recorded of each step, in order; a step that was taken again comes twice."""
        path = self.run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [record for record in map(json.loads, lines) if record["kind"] == "train"]

    def steps(self) -> int:
        return max((record["step"] for record in self.trained()), default=0)

    def wait_for_start(self, number: int) -> None:
        """Until this start has trained."""
        wait(lambda: any(r["start"] == number for r in self.trained()), f"a step of start {number}")


def two_nodes_at_once(scene: WideScene) -> None:
    nodes = scene.node(7), scene.node(20)
    for node in nodes:
        bed.crash(node)
    scene.happens()


def three_nodes_in_turn(scene: WideScene) -> None:
    for start in (1, 2, 3):
        scene.wait_for_start(start)
        bed.crash(scene.node(5))
        if start == 1:
            scene.happens()
    scene.wait_for_start(4)


def _ranks(*expected: int) -> Callable[[WideScene], str]:
    def check(scene: WideScene) -> str:
        found = tuple(start["ranks"] for start in scene.starts)
        return "" if found == expected else f"starts of {found} ranks instead of {expected}"

    return check


@dataclass(frozen=True)
class Drill:
    """A fault, and the job that it is done to."""

    name: str
    fault: Callable[[WideScene], None]
    check: Callable[[WideScene], str]
    nodes: int = NODES
    before: Callable[[], None] = lambda: None


DRILLS = (
    Drill("nothing", faults.nothing, _ranks(30)),
    Drill("SIGKILL to a rank", faults.killed_rank, _ranks(30, 30)),
    Drill("two nodes crash at once", two_nodes_at_once, _ranks(30, 30)),
    # the job that follows needs as many nodes as the first one had
    Drill("the first node crashes (28 + 2 nodes)", faults.crashed_first_node, _ranks(28, 28), nodes=28),
    Drill("a node is drained", faults.drained_node, _ranks(30)),
    Drill("three nodes crash in turn, elastic", three_nodes_in_turn, _ranks(30, 30, 30, 28)),
    Drill(
        "a node fails the pre-flight",
        faults.nothing,
        lambda scene: _ranks(30)(scene) or left_out("n9")(scene),
        before=lambda: faults.fill("n9"),
    ),
)


@dataclass
class Result:
    """What came of a drill; seconds."""

    name: str
    launch_s: float = 0.0
    """`pha launch`, until the job has a number."""
    look_s: dict[str, float] = field(default_factory=dict)
    """The first look at the nodes, by part."""
    first_step_s: float = 0.0
    """From the job's number to the first step."""
    noticed_s: list[float] = field(default_factory=list)
    """From each fault that ended a start to the first word of a supervisor or deputy."""
    new_step_s: float | None = None
    """From the first fault to the first step of the next start."""
    relaunch_s: list[float] = field(default_factory=list)
    """From each end of a start to the first step of the next one."""
    twice: int = 0
    starts: int = 0
    jobs: int = 0
    load: float = 0.0
    problems: tuple[str, ...] = ()


def drill(one: Drill, folder: Path) -> Result:
    """Brings a cluster up, does it, and looks at what came of it."""
    run = folder / "".join(c if c.isalnum() else "-" for c in one.name)
    shutil.rmtree(run, ignore_errors=True)
    scene, result = WideScene(run), Result(one.name)
    bed.up(NODES + SPARES)
    launched = 0.0
    try:
        one.before()
        began = time.monotonic()
        scene.job, launched = launch(folder, run, one), time.time()
        result.launch_s = time.monotonic() - began
        wait(lambda: scene.steps() >= AT, f"step {AT}")
        one.fault(scene)
        wait(lambda: finished(run), "the end of the run")
        result.problems = tuple(filter(None, [one.check(scene)]))
        wait(lambda: not bed.told("squeue", "-h", "-o", "%i").split(), "the end of all jobs")
    except RuntimeError as error:
        result.problems = (str(error),)
    finally:
        result.load = os.getloadavg()[0]
        bed.down()
    try:
        measure(scene, result, launched)
    except (LookupError, OSError, ValueError) as error:
        result.problems += (f"nothing to measure: {error!r}",)
    return result


def launch(folder: Path, run: Path, one: Drill) -> str:
    """Returns the job's number."""
    settings = [
        f"run_dir={run}", f"cluster.nodes={one.nodes}", f"cluster.spare_nodes={SPARES}", "cluster.time=30:00",
        f"cluster.python={folder / 'python'}", "cluster.min_link_mb_s=0", "cluster.slow_node=0",
        f"cluster.env={{{dummy.SETTINGS}: '{STEPS},{BATCH},{EVERY},{STEP_S},{LIMIT_S}'}}",
    ]  # fmt: skip
    told = bed.told(sys.executable, "-m", "pretrain.cli", "launch", str(folder / "run.yaml"), "--json", *settings)
    return str(json.loads(told)["job"])


def finished(run: Path) -> bool:
    """Whether a supervisor has found the run done, or has given it up."""
    return any(e["event"] == "end" and e["decision"] in ("finish", "give up") for e in events(run))


def measure(scene: WideScene, result: Result, launched: float) -> None:
    """Fills in the result from the run's files."""
    known, trained, starts = events(scene.run), scene.trained(), scene.starts
    result.starts, result.jobs = len(starts), len({e["job"] for e in starts})
    result.look_s = next(e["seconds"] for e in known if e["event"] == "preflight" and e.get("file"))
    result.first_step_s = trained[0]["time"] - launched
    for number, start in enumerate(starts[1:], 2):
        words = [e["time"] for e in known if e["event"] in NOTICED and e["time"] < start["time"]]
        last_old = max(r["time"] for r in trained if r["start"] == number - 1)
        first_new = min(r["time"] for r in trained if r["start"] == number)
        noticed = min(t for t in words if t >= last_old - 1.0)
        result.noticed_s.append(noticed - max(last_old, scene.at if number == 2 else 0.0))
        result.relaunch_s.append(first_new - noticed)
        if number == 2:
            result.new_step_s = first_new - scene.at
    result.twice = len(trained) - len({r["step"] for r in trained})
    if trained[-1]["step"] != STEPS or trained[-1]["state"] != dummy.last_state(STEPS, BATCH):
        result.problems += ("the run's end differs from that of a run that nothing happened to",)


def table(results: list[Result]) -> Table:
    """For people."""
    shown = Table(
        f"Harm to a job of {NODES} + {SPARES} nodes",
        (
            "harm",
            "launch to first step",
            "noticed after",
            "next step after",
            "steps taken twice",
            "starts (jobs)",
            "end",
        ),
    )
    for one in results:
        shown.rows.append(
            [
                one.name,
                f"{one.first_step_s:.1f} s",
                ", ".join(f"{s:.1f} s" for s in one.noticed_s) or "–",
                ", ".join(f"{s:.1f} s" for s in one.relaunch_s) or "–",
                str(one.twice),
                f"{one.starts} ({one.jobs})",
                "right" if not one.problems else f"FAILED: {'; '.join(one.problems)}",
            ]
        )
    looks = [one.look_s for one in results if one.look_s]
    parts = "; ".join(f"{name} {min(s[name] for s in looks):.1f} to {max(s[name] for s in looks):.1f} s"
                      for name in ("nodes", "links") if all(name in s for s in looks))  # fmt: skip
    loads = [one.load for one in results]
    machine = describe()
    shown.remarks.append(
        f"{STEPS} steps of {STEP_S:g} s, a checkpoint every {EVERY}, the fault at step {AT}; limit of a step "
        f"{LIMIT_S:g} s, SlurmdTimeout 15 s. All {NODES + SPARES} nodes share {machine['cores']} cores of "
        f"{machine['processor']} with other work (load {min(loads):.0f} to {max(loads):.0f})."
    )
    shown.remarks.append(
        f"`pha launch` took {min(o.launch_s for o in results):.1f} to {max(o.launch_s for o in results):.1f} s, the "
        f"look at {NODES + SPARES} nodes before the first start {parts}. Noticed: from the last step of the old start, "
        "or the fault, to the first word of a supervisor or a deputy; next step: from that word on. Right: the state "
        "after the last step, a hash over all sequences in their batches, is that of a run that nothing happened to."
    )
    return shown


def prepare(folder: Path) -> None:
    """The config, the interpreter, and a dataset of one empty shard for the look at the nodes."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "train-0.tar").touch()
    index = {"hash": "0" * 64, "splits": {"train": {"shards": [{"name": "train-0.tar", "bytes": 0}]}}}
    (folder / "data" / "index.json").write_text(json.dumps(index))
    (folder / "run.yaml").write_text(CONFIG.replace("DATA", str(folder / "data")) + f"run_dir: {folder / 'run'}\n")
    (folder / "python").write_text(PYTHON.format(root=bed.ROOT, python=sys.executable))
    (folder / "python").chmod(0o755)


def main() -> None:
    """Runs the drills; exits with 1 if one failed."""
    program(__doc__, SECTION, "wide", DRILLS, prepare, drill, Result, table)


if __name__ == "__main__":
    main()
