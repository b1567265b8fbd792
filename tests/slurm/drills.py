"""Every fault to a real run on a real Slurm, as a table: `python -m tests.slurm.drills [--only NAME] [--write FILE]`.

Each drill has a cluster of its own. A run of a tiny PHA is launched, the fault is done at step 20, and nobody touches
it again; in the end its records, its weights and a ledger of what every rank was given are compared with those of a run
that nothing happened to. Results are kept beside the runs: a second call does only what is missing.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.tables import Table
from cluster.run_files import events, last_records
from pretrain import metrics
from pretrain.checkpoint import newest
from pretrain.files import sha256
from tests.conftest import build_tiny_dataset
from tests.drills import ledger
from tests.e2e import runs
from tests.e2e.runs import training, write_config
from tests.slurm import bed, faults
from tests.slurm.faults import Scene, wait
from tests.slurm.program import NOTICED, left_out, program

SECTION = "make slurm-drills"
STEPS, LONG, BATCH, SEQ_LEN, AT = 600, 6000, 8, 32, 30
CONFIG = (
    runs.CONFIG.replace("steps: 14", f"steps: {STEPS}")
    .replace("eval: {every: 6", "eval: {every: 0")
    .replace("checkpoint: {every: 4", "checkpoint: {every: 20")
)
PYTHON = """#!/bin/sh
# The interpreter of the drills: ranks write down what they are given.
case "$2 $3" in
    "pretrain.cli train") shift 2; PYTHONPATH="$PYTHONPATH:{root}" exec {python} -m tests.drills.ledger "$@" ;;
esac
PYTHONPATH="$PYTHONPATH:{root}" exec {python} "$@"
"""


@dataclass(frozen=True)
class Drill:
    """A fault, and the job that it is done to."""

    name: str
    fault: Callable[[Scene], None]
    nodes: int = 2
    spares: int = 1
    settings: tuple[str, ...] = ()
    before: Callable[[], None] = lambda: None
    """Done to the cluster before the launch."""
    again: bool | None = True
    """Whether it costs the run a start: one that should and does not was not tried. None is either."""
    check: Callable[[Scene], str] = lambda scene: ""
    """What is wrong in the end, beside what is always looked at; empty is nothing."""
    steps: int = STEPS
    """More where the fault comes late."""
    same: tuple[str, ...] = ()
    """Settings of the undisturbed run too: what ranks draw by themselves is not the same on fewer of them."""
    elastic: bool = False
    """Whether fewer ranks finish the run: its numbers are then equal but for rounding, which grows."""

    def wrong(self, scene: Scene) -> tuple[str, ...]:
        """What is wrong in the end, in words."""
        count = len(scene.starts)
        starts = "" if self.again in (None, count > 1) else f"the run was started {count} time(s)"
        return tuple(filter(None, [starts, self.check(scene)]))

    @property
    def reference(self) -> str:
        """The folder of the run that nothing happens to."""
        return f"reference-{self.nodes}-{self.steps}"


@dataclass
class Result:
    """What came of a drill."""

    name: str
    noticed_s: float | None = None
    """From the fault to the first word of a supervisor or deputy; None where there was nothing to notice."""
    new_step_s: float | None = None
    """From the fault to the first step of the next start."""
    twice: int = 0
    """Steps that were taken again."""
    starts: int = 0
    jobs: int = 0
    problems: tuple[str, ...] = ()
    equal: str = ""
    """How the end compares with the undisturbed run's."""


def _changed_node(scene: Scene) -> str:
    first, last = scene.starts[0]["nodes"], scene.starts[-1]["nodes"]
    return "" if first != last else "the same nodes again"


def _old_one_left(scene: Scene) -> str:
    if not scene.keep.get("alive"):
        return "the old rank was gone before the new start trained: nothing was tried"
    path = scene.run / "exits" / "000001" / "rank-0.json"
    wait(path.exists, "the old rank's reason")
    kind = json.loads(path.read_text())["kind"]
    return "" if kind == "overtaken" else f"the old rank left as {kind}"


DRILLS = (
    Drill("SIGKILL to a rank", faults.killed_rank),
    Drill("SIGSTOP of a rank", faults.stopped_rank),
    Drill("SIGKILL to a node's slurmd", faults.killed_slurmd, again=None),
    Drill("SIGKILL to a node's slurmstepd", faults.killed_stepd, again=None),
    Drill("a node crashes in silence", faults.crashed_node, check=_changed_node),
    Drill("the first node crashes", faults.crashed_first_node, check=_changed_node),
    Drill("a node is unplugged for 25 s", faults.unplugged_node),
    Drill("only a node's data network is cut", faults.cut_data_network, check=_changed_node),
    Drill("a node reboots faster than SlurmdTimeout", faults.rebooted_node),
    Drill("a node is drained", faults.drained_node, again=False),
    Drill("scancel --signal=USR1", faults.signalled_job),
    Drill(
        "the time limit (1:30) comes", faults.time_limit, settings=("cluster.time=1:30", "cluster.lead_s=20"),
        steps=LONG,
    ),
    Drill("preempted by a partition of higher priority", faults.preempted_job),
    Drill("a node's memory is used up", faults.used_up_memory),
    Drill("a node's /dev/shm is full when a rank is killed", faults.full_disk, check=_changed_node),
    Drill(
        "a node fails the pre-flight", faults.nothing, before=lambda: faults.fill("n2"), again=False,
        check=left_out("n2"),
    ),
    Drill("SIGKILL to both ranks while they save", faults.killed_while_saving),
    Drill(
        "two of four nodes crash, elastic", faults.lost_two_nodes, nodes=4, spares=0, elastic=True,
        settings=("cluster.elastic_least=0.5",), same=("model.dropout=0",),
    ),
    Drill("the controller is killed, then a rank", faults.restarted_controller),
    Drill(
        "the old start lives on, cut off", faults.old_start_lives_on, nodes=1, check=_old_one_left,
        settings=("watchdog.step_s=900", "watchdog.save_s=900"),
    ),
)  # fmt: skip


def drill(one: Drill, folder: Path) -> Result:
    """Brings a cluster up, does it, and looks at what came of it."""
    run = folder / one.name.translate({ord(c): "-" for c in " /:,()'="})
    shutil.rmtree(run, ignore_errors=True)  # of a try that failed, or was broken off
    scene, result = Scene(run), Result(one.name)
    bed.up()
    try:
        one.before()
        scene.job = launch(folder, run, one)
        wait(lambda: scene.steps() >= AT, f"step {AT}")
        one.fault(scene)
        wait(lambda: finished(run), "the end of the run")
        result.problems = one.wrong(scene)
        wait(lambda: not bed.told("squeue", "-h", "-o", "%i").split(), "the end of all jobs")
    except RuntimeError as error:
        result.problems = (str(error),)
    finally:
        bed.down()
    try:
        measure(scene, one, result, folder)
    except Exception as error:
        result.problems += (f"nothing to measure: {error!r}",)
    return result


def launch(folder: Path, run: Path, one: Drill) -> str:
    """Returns the job's number."""
    settings = [
        f"run_dir={run}", f"cluster.nodes={one.nodes}", f"cluster.spare_nodes={one.spares}", "cluster.time=30:00",
        "watchdog.step_s=10", "watchdog.save_s=20", "cluster.interface=eth1", f"cluster.python={folder / 'python'}",
        f"cluster.env={{{ledger.LEDGER}: {run / 'ledger'}}}", f"train.steps={one.steps}", *one.settings, *one.same,
    ]  # fmt: skip
    told = bed.told(sys.executable, "-m", "pretrain.cli", "launch", str(folder / "run.yaml"), "--json", *settings)
    return str(json.loads(told)["job"])


def finished(run: Path) -> bool:
    """Whether a supervisor has found the run done, or has given it up."""
    return any(e["event"] == "end" and e["decision"] in ("finish", "give up") for e in events(run))


def measure(scene: Scene, one: Drill, result: Result, folder: Path) -> None:
    """Fills in the result from the run's files."""
    run, known = scene.run, events(scene.run)
    again = [e for e in scene.starts if e["time"] > scene.at]
    result.starts, result.jobs = len(scene.starts), len({e["job"] for e in scene.starts})
    if again and scene.at:
        result.noticed_s = next(e["time"] for e in known if e["event"] in NOTICED and e["time"] > scene.at) - scene.at
        kept = [*superseded(run), *metrics.read(run / "metrics.jsonl")]
        times = [r["time"] for r in metrics.of_kind(kept, "train") if r["time"] > again[0]["time"]]
        result.new_step_s = min(times) - scene.at
    result.twice = len(metrics.of_kind(superseded(run), "train"))
    reference = folder / one.reference
    ours, theirs = training(run), training(reference)
    dataset = folder / "data" / "dataset"
    epoch = ledger.epoch(dataset, SEQ_LEN, BATCH)
    result.problems += tuple(ledger.problems(run / "ledger", dataset, one.steps, BATCH, epoch, marks(run)))
    if one.elastic:
        near, far = (apart(ours, theirs, last) for last in (scene.steps_before + 20, one.steps))
        result.equal = f"losses within {near:.0e} in 20 steps, {far:.0e} in all"
        result.problems += ("losses differ",) if near > 1e-4 or ours.keys() != theirs.keys() else ()
        return
    ends = [sha256(newest(each / "checkpoints").weights) for each in (run, reference)]
    same = ours == theirs and ends[0] == ends[1]
    result.equal = "bit for bit" if same else "no"
    result.problems += () if same else ("the run's end differs from the undisturbed one's",)


def apart(ours: dict, theirs: dict, last: int) -> float:
    """The largest relative difference of two runs' losses up to a step."""
    return max(abs(ours[step][0] - theirs[step][0]) / theirs[step][0] for step in theirs if step <= last)


def superseded(run: Path) -> list[dict]:
    """Records of steps that were taken again."""
    path = run / "metrics.superseded.jsonl"
    return metrics.read(path) if path.exists() else []


def marks(run: Path) -> list[str]:
    """Of the run's starts, in order."""
    return [json.loads(path.read_text())["mark"] for path in sorted((run / "generations").glob("*.json"))]


def prepare(folder: Path) -> None:
    """The dataset, the interpreter and the undisturbed runs, where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "run.yaml").exists():
        dataset = build_tiny_dataset(folder / "data")
        write_config(folder, dataset, folder / "run", CONFIG)
        (folder / "python").write_text(PYTHON.format(root=bed.ROOT, python=sys.executable))
        (folder / "python").chmod(0o755)
    for one in {one.reference: one for one in DRILLS}.values():
        reference = folder / one.reference
        if not last_records(reference) or max(training(reference)) < one.steps:
            settings = (f"run_dir={reference}", "train.threads=1", f"train.steps={one.steps}", *one.same)
            job = runs.start(reference, folder / "run.yaml", *settings, ranks=one.nodes)
            if job.wait() != 0:
                raise SystemExit(f"error: the undisturbed run {one.reference} failed; see {reference / 'logs'}.")


def table(results: list[Result]) -> Table:
    """For people."""
    columns = ("harm", "noticed after", "first new step after", "steps taken twice", "starts (jobs)", "data", "the end")
    shown = Table("Harm to runs on a real Slurm of four nodes", columns)
    for one in results:
        data = "whole" if not any("given" in p or "tokens" in p for p in one.problems) else "LOST"
        shown.rows.append(
            [
                one.name,
                "–" if one.noticed_s is None else f"{one.noticed_s:.1f} s",
                "–" if one.new_step_s is None else f"{one.new_step_s:.1f} s",
                str(one.twice),
                f"{one.starts} ({one.jobs})",
                data,
                one.equal if not one.problems else f"FAILED: {'; '.join(one.problems)}",
            ]
        )
    machine = describe()
    shown.remarks.append(
        f"{STEPS} steps of the nano model ({LONG} for the time limit) on one rank a node, a "
        f"checkpoint every 20 steps, the fault at step {AT}; limit of a step 10 s, SlurmdTimeout 15 s, KillWait 10 s. "
        f"All nodes share {machine['cores']} cores of {machine['processor']}."
    )
    shown.remarks.append(
        "Noticed: the first word of a supervisor or a deputy; – where there was nothing to do, or where Slurm notices "
        "later (a killed slurmd after 26 s, a killed slurmstepd after 75 s) than the run lasted: its ranks train on. "
        "Data: what each rank was given, by a ledger that the ranks keep: every sequence once. The end: losses, norms "
        "and rates of all steps and the final weights' bytes against a run that nothing happened to."
    )
    return shown


def main() -> None:
    """Runs the drills; exits with 1 if one failed."""
    program(__doc__, SECTION, "drills", DRILLS, prepare, drill, Result, table)


if __name__ == "__main__":
    main()
