"""512 nodes and more, simulated: searches for bad nodes, weeks of failures, and how often to save.

    python -m benchmarks.simulation [--seeds 20] [--write docs/scale.md] [--picture docs/scale-goodput.png]

What decides is the code that runs on a cluster (`cluster`); what is simulated is the cluster, by a clock that only
jumps. Everything comes from seeds, and the machine's load changes only the rows that are marked as measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import failures, intervals
from benchmarks.failures import Costs, Faults, Outcome, Simulation, job
from benchmarks.machine import describe
from benchmarks.tables import Cell, Table
from cluster import run_files, slurm
from cluster.link_search import search
from cluster.preflight import SEARCH_S
from cluster.run_files import exit_notes, heartbeats
from cluster.supervise import Limits, Owner, Supervisor
from pretrain.config import WatchdogConfig
from pretrain.markdown import check_section, write_section

SECTION = "benchmarks/simulation.py"
WIDTH, GPUS, BATCH = 512, 8, 8192
SPARES = (0, 4, 16)
POOL = WIDTH + 32
"""Nodes of the cluster."""
RUN_DAYS, LIMIT_DAYS = 60.0, 7.0
GPU_HOURS = 50_000.0
"""Between two failures: 419 in 54 days on 16,384 GPUs (Llama 3 report)."""
LEMON = 50.0
SHARES = {failures.LOST: 0.35, failures.KILLED: 0.45, failures.HANG: 0.20}
"""Of the failures: assumed."""
KILLED_S, BEYOND_S, RELAUNCH_S = 0.23, 10.6, 17.5
"""Measured by the drills on four nodes: until a killed rank is noticed, beyond the limit of a step until a silent one
is, and from there to the first new step (make slurm-drills)."""
SCALED = 10.0
"""512 nodes take so many times as long to start as the drills' few: assumed."""
ROUND_S = 10.0
"""A round of the search for bad nodes in which all answer: torch is imported from a shared disk. Assumed."""
STALL_S, EVERY_S, DURABLE_S, QUEUE_S = 5.0, 600.0, 60.0, 1800.0


def costs() -> Costs:
    """The drills' times, scaled, and what has to be assumed."""
    silent = WatchdogConfig().least_s + BEYOND_S
    return Costs(
        {failures.LOST: silent, failures.KILLED: KILLED_S, failures.HANG: silent},
        relaunch=SCALED * RELAUNCH_S, queue=QUEUE_S, stall=STALL_S, every=EVERY_S, durable=DURABLE_S,
    )  # fmt: skip


def script() -> Table:
    """The job's script for all nodes and the most spare ones."""
    one = job(WIDTH, max(SPARES), GPUS, BATCH, 0.5)
    times = []
    for _ in range(50):
        began = time.process_time()
        text = slurm.render(one)
        times.append(time.process_time() - began)
    shown = Table(f"The script of {WIDTH} + {max(SPARES)} nodes", ("", "figure"))
    shown.rows = [
        ["bytes of job.sh", f"{len(text):,}"],
        ["to render it, median ms of processor time (measured)", 1e3 * statistics.median(times)],
    ]
    shown.remarks.append("It names no node: its size does not depend on how many there are.")
    return shown


class Fabric:
    """A cluster on which a group works when it holds no bad node and not both ends of a bad link."""

    def __init__(self, nodes: int, bad: int, links: int, seed: int) -> None:
        draw = random.Random(seed)
        self.names = [f"n{i}" for i in range(nodes)]
        chosen = draw.sample(self.names, bad + 2 * links)
        self.bad, ends = set(chosen[:bad]), chosen[bad:]
        self.links = [{a, b} for a, b in zip(ends[::2], ends[1::2], strict=True)]
        self.groups, self.slow = 0, 0

    def test(self, groups: list[list[str]]) -> list[bool]:
        """`cluster.link_search.Test`."""
        answers = [
            not self.bad & (own := set(group)) and not any(link <= own for link in self.links) for group in groups
        ]
        self.groups, self.slow = self.groups + len(groups), self.slow + (not all(answers))
        return answers

    def _works(self, group: set[str]) -> bool:
        return not self.bad & group and not any(link <= group for link in self.links)


def searches(seeds: int) -> Table:
    """Who spoils the collective of 512 nodes."""
    columns = ("at fault", "rounds", "worst", "groups", "worst", "seconds", "worst", "own s", "found exactly")
    shown = Table(f"The search for what spoils a collective of {WIDTH} nodes", columns)
    for nodes, links in ((1, 0), (3, 0), (10, 0), (0, 1), (0, 2), (3, 1)):
        rounds, groups, seconds, own, exact = [], [], [], [], 0
        for seed in range(seeds):
            fabric = Fabric(WIDTH, nodes, links, seed)
            began = time.process_time()
            found = search(fabric.names, fabric.test, whole_failed=True)
            own.append(time.process_time() - began)
            rounds.append(float(found.rounds))
            groups.append(float(fabric.groups))
            seconds.append(ROUND_S * found.rounds + SEARCH_S * fabric.slow)
            exact += set(found.nodes) == fabric.bad and [set(pair) for pair in found.links] in _orders(fabric.links)
        name = " and ".join(f"{n} {what}{'s' * (n > 1)}" for n, what in ((nodes, "node"), (links, "link")) if n)
        row: list[Cell] = [name]
        for values in (rounds, groups, seconds):
            row += [f"{statistics.median(values):,.0f}", f"{max(values):,.0f}"]
        shown.rows.append([*row, max(own), f"{exact} of {seeds}"])
    shown.remarks.append(
        f"Median and worst of {seeds} seeds. A round is one srun step, whatever its groups, and takes {ROUND_S:g} s "
        f"(assumed), with a group that fails {SEARCH_S:g} s more (the search's own limit). Own: the search's processor "
        "time, the worst (measured)."
    )
    return shown


def _orders(links: list[set[str]]) -> list[list[set[str]]]:
    return [links, links[::-1]]


def weeks(seeds: int) -> list[Table]:
    """60 days on 512 nodes, with the supervisor's decisions."""
    faults = Faults(GPU_HOURS / GPUS, SHARES, LEMON)
    kinds = (
        failures.LOST,
        failures.KILLED,
        failures.HANG,
        failures.HEAD,
        failures.LIMIT,
        failures.NODES,
        failures.STALLS,
        failures.FEWER,
    )
    columns = ("spare nodes", "elastic", "goodput", "worst", "restarts", "spares used", "hand-overs", "fewest nodes")
    shown = Table(f"{RUN_DAYS:.0f} days on {WIDTH} nodes of {GPUS} GPUs", columns)
    hours = Table("Hours of those days that were lost, by cause", ("spare nodes", "elastic", *kinds, "of it the lemon"))
    for spares in SPARES:
        for elastic, called in ((0.5, "with half of the nodes"), (1.0, "no")):
            one = job(WIDTH, spares, GPUS, BATCH, elastic)
            every = [
                Simulation(one, costs(), faults, RUN_DAYS, seed, POOL, LIMIT_DAYS * failures.DAY).go()
                for seed in range(seeds)
            ]
            named: list[Cell] = [str(spares), called]
            goodput = [outcome.goodput for outcome in every]
            shown.rows.append(
                [
                    *named, f"{statistics.median(goodput):.2%}", f"{min(goodput):.2%}",
                    *(_median(every, each) for each in _COUNTS), str(min(outcome.smallest for outcome in every)),
                ]
            )  # fmt: skip
            lost = [_hours(every, lambda outcome, kind=kind: outcome.lost[kind]) for kind in kinds]  # type: ignore[misc]
            hours.rows.append([*named, *lost, _hours(every, lambda outcome: outcome.by_lemon)])
    shown.remarks += _assumed(seeds)
    return [shown, hours]


_COUNTS: tuple[Callable[[Outcome], int], ...] = (
    lambda outcome: outcome.restarts, lambda outcome: outcome.spares_used, lambda outcome: outcome.handed_over,
)  # fmt: skip


def _median(every: Sequence[Outcome], figure: Callable[[Outcome], int]) -> str:
    return f"{statistics.median(figure(outcome) for outcome in every):,.0f}"


def _hours(every: Sequence[Outcome], figure: Callable[[Outcome], float]) -> str:
    return f"{statistics.median(figure(outcome) for outcome in every) / failures.HOUR:,.1f}"


def _assumed(seeds: int) -> list[str]:
    used = costs()
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in SHARES.items())
    return [
        f"Medians of {seeds} seeds. One failure in {GPU_HOURS:,.0f} GPU-hours (published for Llama 3), and one of the "
        f"nodes fails {LEMON:g} times as often; {shares} (assumed). A lost node is repaired in "
        f"{used.repair / failures.HOUR:.0f} h. The cluster has {POOL} nodes, an allocation lasts {LIMIT_DAYS:g} days, "
        f"and a successor waits {used.queue / 60:.0f} minutes in the queue (assumed).",
        f"A killed rank is noticed after {KILLED_S:g} s, a lost node and a hang {BEYOND_S:g} s after a step's limit, "
        f"which is {WatchdogConfig().least_s:g} s (the drills' times, and `watchdog.least_s`); from there to the first "
        f"new step {used.relaunch:g} s, {SCALED:g} times what the drills took on a few nodes (the factor is assumed). "
        f"A checkpoint every {used.every:g} s stalls for {used.stall:g} s and can be taken up {used.durable:g} s later "
        "(assumed).",
        "Goodput: training that counted, at the speed of all nodes, of all time. The batch is "
        f"{BATCH:,} sequences: of {WIDTH - 1} nodes the most whose ranks divide it are {WIDTH // 2}.",
    ]


SIZES = (512, 4096, 16_384)


def how_often(deaths: int = 40_000) -> Table:
    """Goodput by the interval between checkpoints."""
    columns = ("GPUs", "MTBF", "Young", "Daly", "best simulated", "goodput there", "at Young's", "at 10 min",
               "at 60 min", "closed form at 60 min")  # fmt: skip
    shown = Table("How often to save", columns)
    for gpus in SIZES:
        mtbf, restart = _mtbf(gpus), _restart()
        lives = intervals.lifetimes(mtbf, deaths, gpus)
        young, daly = intervals.young(mtbf, STALL_S), intervals.daly(mtbf, STALL_S)
        best = intervals.best(intervals.grid(young / 4, young * 4, 81), lives, STALL_S, restart)
        at = [intervals.simulated(every, lives, STALL_S, restart) for every in (best, young, 600.0, 3600.0)]
        closed = intervals.closed_form(3600.0, mtbf, STALL_S, restart)
        minutes = [f"{seconds / 60:.1f} min" for seconds in (young, daly, best)]
        shown.rows.append(
            [f"{gpus:,}", f"{mtbf / failures.HOUR:.1f} h", *minutes, *(f"{share:.2%}" for share in at), f"{closed:.2%}"]
        )
    shown.remarks.append(
        f"{deaths:,} failures a row; a stall of {STALL_S:g} s, and {_restart():.0f} s from a failure to the first "
        "new step (the means of the table above). Closed form: Daly 2006, equation 20. The optimum is flat: its "
        "goodput does not depend on who names it."
    )
    return shown


def _mtbf(gpus: int) -> float:
    return GPU_HOURS / gpus * failures.HOUR


def _restart() -> float:
    used = costs()
    return used.relaunch + sum(share * used.detect[kind] for kind, share in SHARES.items())


def picture(path: Path, deaths: int = 10_000) -> None:
    """Draws goodput over the interval."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), dpi=110)
    for gpus, colour in zip(SIZES, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        mtbf, restart = _mtbf(gpus), _restart()
        lives, young = intervals.lifetimes(mtbf, deaths, gpus), intervals.young(mtbf, STALL_S)
        line, dots = intervals.grid(30.0, 4 * failures.HOUR, 120), intervals.grid(30.0, 4 * failures.HOUR, 16)
        smooth = [intervals.closed_form(x, mtbf, STALL_S, restart) for x in line]
        label = f"{gpus:,} GPUs, a failure every {mtbf / failures.HOUR:.1f} h"
        axes.plot([x / 60 for x in line], smooth, color=colour, label=label)
        found = [intervals.simulated(x, lives, STALL_S, restart) for x in dots]
        axes.plot([x / 60 for x in dots], found, "o", color=colour, markersize=3.5)
        there = [intervals.closed_form(young, mtbf, STALL_S, restart)]
        axes.plot([young / 60], there, "*", color=colour, markersize=12, markeredgecolor="black", markeredgewidth=0.6)
    axes.set(xscale="log", ylim=(0.5, 1.0), xlabel="minutes of training between two checkpoints", ylabel="goodput")
    axes.set_title("Lines: closed form; dots: simulated; stars: Young's optimum", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)


def looks() -> Table:
    """What a supervisor's look at its ranks' files costs; measured, on the local disk."""
    columns = ("ranks", "heartbeats, CPU s", "wall s", "one look for silence, CPU s", "wall s", "exit notes, CPU s")
    shown = Table("A supervisor's look at its ranks, once a second (measured)", columns)
    far: list[float] = []
    for ranks in (512, 4096, 16_384):
        with tempfile.TemporaryDirectory(prefix="pha-looks-") as name:
            run = Path(name)
            _write_ranks(run, ranks)
            supervisor = Supervisor(run, ranks, Owner(), Limits({"": 645.0}))
            supervisor._silent(0.0)
            beats = _cheapest(lambda run=run: heartbeats(run))  # type: ignore[misc]
            silent = _cheapest(lambda one=supervisor: one._silent(0.0))  # type: ignore[misc]
            notes = _cheapest(lambda run=run: exit_notes(run, 1))  # type: ignore[misc]
            far = [_delayed(run, readers) for readers in (1, run_files._READERS)] if ranks == 4096 else far
        shown.rows.append([f"{ranks:,}", *beats, *silent, notes[0]])
    machine = describe()
    shown.remarks.append(
        f"The least of five, on {machine['cores']} cores of {machine['processor']} with other work (load "
        f"{machine['load_before']:.0f}). Up to {run_files._READERS} files are read at once: with a delay of 1 ms each "
        f"(simulated) 4,096 heartbeats take {far[1]:.2f} s, and {far[0]:.1f} s in turn."
    )
    return shown


def _delayed(run: Path, readers: int) -> float:
    """Wall seconds to read all heartbeats when each file comes a millisecond late, as over a network."""
    read, most = run_files._object, run_files._READERS

    def late(path: Path | str) -> dict[str, Any]:
        time.sleep(0.001)
        return read(path)

    run_files._object, run_files._READERS = late, readers
    try:
        return _cheapest(lambda: heartbeats(run))[1]
    finally:
        run_files._object, run_files._READERS = read, most


def _write_ranks(run: Path, ranks: int) -> None:
    for folder in ("heartbeats", "exits/000001"):
        (run / folder).mkdir(parents=True)
    for rank in range(ranks):
        beat = {"rank": rank, "host": f"n{rank // GPUS}", "pid": rank, "start": 0, "phase": "train", "step": 1_000_000}
        beat |= {"time": time.time(), "limit_s": 300.0, "compute_s": 2.5}
        (run / "heartbeats" / f"rank-{rank}.json").write_text(json.dumps(beat, indent=1))
        note = {"rank": rank, "host": f"n{rank // GPUS}", "code": 75, "kind": "stopped", "words": "", "time": 1.0}
        (run / "exits" / "000001" / f"rank-{rank}.json").write_text(json.dumps(note))


def _cheapest(act: Callable[[], object]) -> tuple[float, float]:
    """(Processor seconds, wall seconds), the least of five each."""
    spent = []
    for _ in range(5):
        own, wall = time.process_time(), time.perf_counter()
        act()
        spent.append((time.process_time() - own, time.perf_counter() - wall))
    return min(cpu for cpu, _ in spent), min(wall for _, wall in spent)


def main() -> None:
    """Simulates everything, and prints or writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--write", type=Path, help="put the tables between the markers of this Markdown file")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    if options.write is not None:
        check_section(options.write, SECTION)
    began = time.process_time()
    tables = [script(), searches(options.seeds), *weeks(options.seeds), how_often(), looks()]
    if options.picture is not None:
        picture(options.picture)
    text = "\n".join(table.markdown() for table in tables)
    print(text)
    print(f"{time.process_time() - began:.1f} s of processor time, load {os.getloadavg()[0]:.0f}")
    if options.write is not None:
        write_section(options.write, SECTION, text)


if __name__ == "__main__":
    main()
