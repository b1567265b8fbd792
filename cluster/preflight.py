"""Looks at the nodes of an allocation before ranks are started on them.

First a small program on every node at once (`cluster.node_probe`), then what ranks do (`pretrain.link_probe`): each
node computes, and all sum an array together; where that fails, groups are tried until it is known who spoils it
(`cluster.link_search`). By hand, inside an allocation: `python -m cluster.preflight LAUNCH_FOLDER`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster import slurm, steps, verdicts
from cluster.errors import ClusterError
from cluster.job import Job
from cluster.link_search import search
from cluster.node_probe import END, HELLO, RANK, Question
from cluster.run_files import newest_start
from cluster.verdicts import Need, Verdict

FOLDER = "preflight"
"""In the run's folder: `<start>.json`."""
LINK_S = 20.0
"""So long the collective may take when torch may not be in the nodes' caches yet (at most a third of the limit), ..."""
SEARCH_S = 8.0
"""... and in the rounds that follow."""
AGAIN = 16
"""Silent nodes that are asked once more, each by itself: one that is gone can keep others from being reached."""
PORTS = (40_000, 20_000)
"""The first one and how many: others than those of the ranks."""


@dataclass(frozen=True)
class Settings:
    """How a job's nodes are looked at."""

    on: bool = False
    limit_s: float = 60.0
    need: Need = field(default_factory=Need)
    data: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, job: Job) -> Settings:
        """Those that the launch wrote; off for a job without them."""
        told = job.preflight
        if not told:
            return cls()
        return cls(bool(told["on"]), float(told["limit_s"]), Need(**told["need"]), list(told["data"]))


@dataclass
class Report:
    """What was found."""

    start: int
    verdicts: list[Verdict] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of nodes that each work with others and not with each other."""
    problem: str = ""
    """Why the nodes could not be looked at, or what could not be told; then nobody is left out for it."""
    rounds: int = 0
    """Of the search for who spoils the collective."""
    seconds: dict[str, float] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    def nodes(self, state: str) -> list[str]:
        """Those of this state (see `Verdict.state`)."""
        return [verdict.node for verdict in self.verdicts if verdict.state == state]

    @property
    def text(self) -> str:
        """For people."""
        took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        words = f"\n{self.problem}" if self.problem else ""
        return f"pre-flight of start {self.start}: {took}{words}\n{verdicts.table(self.verdicts)}"

    def save(self, run: Path) -> Path | None:
        """Writes it into the run's folder; None where that takes no files (which is in the verdicts)."""
        folder = run / FOLDER
        value = {**asdict(self), "verdicts": [verdict.as_dict() for verdict in self.verdicts]}
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            tries = 1 + sum(1 for _ in folder.glob(f"{self.start:06d}*.json"))
            path = folder / (f"{self.start:06d}.json" if tries == 1 else f"{self.start:06d}-{tries}.json")
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
            temporary.replace(path)
            return path
        return None


class Preflight:
    """One look at some nodes of a job."""

    def __init__(
        self, job: Job, job_id: str, start: int, stop: Callable[[], bool] = lambda: False, ask: Any = steps.ask
    ) -> None:
        """`stop` is asked all the time, and ends the look; `ask` is `steps.ask`, or a test's own."""
        self.job, self.job_id, self.stop, self._ask = job, job_id, stop, ask
        self.settings, self.report = Settings.of(job), Report(start)
        self._asked, self._errors = 0, dict[str, str]()

    def look(self, nodes: Sequence[str]) -> Report:
        """Verdicts on these nodes. Only what is certain leaves a node out."""
        report, began = self.report, time.monotonic()
        lines = self._probe(list(nodes))
        report.seconds["nodes"] = round(time.monotonic() - began, 2)
        if not lines.lines or self.stop():
            words = next((line for line in reversed(lines.complaints) if line), "srun says nothing")
            report.problem = "" if self.stop() else f"No node answers, so that none is judged ({words})."
            report.verdicts = [Verdict(node) for node in nodes]
            return report
        judged = verdicts.judge(nodes, lines.lines, self.settings.need, self._has_ended)
        report.verdicts = list(judged.values())
        self._end_strays(lines, judged)
        able = [node for node in nodes if judged[node].state != "bad"]
        if len(able) > 1 or (able and self.job.gpus_per_node):
            began = time.monotonic()
            self._links(able, judged)
            report.seconds["links"] = round(time.monotonic() - began, 2)
        return report

    # --- the nodes by themselves -------------------------------------------------------------------------

    def _probe(self, nodes: list[str]) -> steps.Answers:
        question = Question(self.job.run, self.settings.data, self.job.interface, self.job.gpus_per_node)
        answers = self._nodes_say([nodes], question)
        silent = [node for node in nodes if not answers.of(node, "check", HELLO)]
        if answers.lines and silent and len(silent) <= AGAIN and not self.stop():
            again = self._nodes_say([[node] for node in silent], question, steps.GRACE_S)
            answers.lines.update(again.lines)
        return answers

    def _nodes_say(self, groups: list[list[str]], question: Question, limit_s: float | None = None) -> steps.Answers:
        program = [self.job.python, "-m", "cluster.node_probe", question.text()]
        return self._run(groups, program, lambda said: any(line.get("check") == END for line in said), limit_s)

    def _run(
        self,
        groups: list[list[str]],
        program: list[str],
        ended: Callable[[Sequence[steps.Line]], bool],
        limit_s: float | None = None,
    ) -> steps.Answers:
        commands = [steps.arguments(group, self.job.gpus_per_node, program) for group in groups]
        nodes = [node for group in groups for node in group]
        limit = self.settings.limit_s if limit_s is None else limit_s
        answers: steps.Answers = self._ask(self.job_id, commands, nodes, ended, limit, self.stop)
        return answers

    def _has_ended(self, job: str | None) -> bool:
        """Whether a stray rank's job has: one that still runs shares the node by Slurm's leave."""
        if job == self.job_id:  # of this job none runs now
            return True
        return job is None or slurm.state_of(job) not in slurm.LIVE

    def _end_strays(self, lines: steps.Answers, judged: dict[str, Verdict]) -> None:
        """Kills ranks of this very run whose job has ended: they would write where the new ones do."""
        mine = str(Path(self.job.run) / "launch") + os.sep
        marked: dict[str, list[list[int]]] = {}
        for node in judged:
            for line in lines.of(node, "check", RANK):
                job = line.get("job")
                if str(line.get("config")).startswith(mine) and job is not None and self._has_ended(job):
                    marked.setdefault(node, []).append([line["pid"], line["began"]])
        if not marked:
            return
        told = self._nodes_say([list(marked)], Question(self.job.run, end=marked))
        for node in marked:
            gone = [pid for line in told.of(node, "check", "ended") for pid in line["ended"]]
            verdict = judged[node]
            kept = [f for f in verdict.findings if not any(f.words.startswith(f"process {pid} ") for pid in gone)]
            verdict.findings = kept
            verdict.figures["ended"] = gone

    # --- together ----------------------------------------------------------------------------------------

    def _links(self, nodes: list[str], judged: dict[str, Verdict]) -> None:
        first = self._groups([nodes], LINK_S, gemm=True)
        if self.stop():
            return
        if problem := verdicts.judge_computing(judged, first.lines, nodes):
            words = next((line for line in reversed(first.complaints) if line), "")
            self.report.problem = f"{problem} {words}".strip()
            return
        for node in nodes:
            judged[node].figures |= {
                key: line[key] for line in first.of(node, "stage", "reduced") for key in ("mb_s", "seconds")
            }
        able = [node for node in nodes if judged[node].state != "bad"]
        self._slow(able, first, judged)
        if len(able) < 2 or (able == nodes and verdicts.works(nodes, first.lines, self.settings.need)):
            return
        found = search(able, self._try, whole_failed=able == nodes)
        self.report.rounds, self.report.links = found.rounds, found.links
        if self.stop():
            return
        if found.unclear:
            words = next(iter(self._errors.values()), "too slow")
            self.report.problem = f"Nobody was found who spoils the sum: {found.unclear} ({words})."
        for node in found.nodes:
            words = f"sums fail with nodes that work with others ({self._errors.get(node, 'too slow')})"
            judged[node].add("links", words, fatal=True)
        for node in set(found.left_out) - set(found.nodes):
            others = [a if b == node else b for a, b in found.links if node in (a, b)]
            words = f"sums fail with {', '.join(others)}"
            words += ", and work with others" if len(able) > 2 else ", and it cannot be told by whose fault"
            judged[node].add("links", f"{words} ({self._errors.get(node, 'too slow')})", fatal=True)

    def _try(self, groups: list[list[str]]) -> list[bool]:
        if self.stop():
            return [True] * len(groups)
        said = self._groups(groups, SEARCH_S)
        return [verdicts.works(group, said.lines, self.settings.need) for group in groups]

    def _groups(self, groups: list[list[str]], timeout_s: float, gemm: bool = False) -> steps.Answers:
        """All groups at once; again with another port where somebody else has taken it."""
        for _ in range(3):
            self._asked += 1
            first, count = PORTS
            port = first + (int(self.job_id) * 31 + self.report.start * 7 + self._asked) % count
            within = min(timeout_s, self.settings.limit_s / 3)
            task = {"groups": groups, "port": port, "timeout_s": within, "gemm": gemm}
            nodes = [node for group in groups for node in group]
            program = [self.job.python, "-m", "pretrain.link_probe", json.dumps(task)]
            answers = self._run([nodes], program, _has_left, self.settings.limit_s + within)
            failures = {node: line["error"] for node in nodes for line in answers.of(node, "stage", "failed")}
            if not any("in use" in error or "EADDRINUSE" in error for error in failures.values()):
                break
        self._errors.update(failures)
        return answers

    def _slow(self, nodes: list[str], first: steps.Answers, judged: dict[str, Verdict]) -> None:
        """Who computes slowly twice: once is an accident."""
        need = self.settings.need
        rates = verdicts.rates(first.lines, nodes)
        for node, rate in rates.items():
            judged[node].figures["gflops"] = round(rate / 1e9)
        if not (slow := verdicts.slow_nodes(rates, need)) or self.stop():
            return
        alone = [[node] for node in nodes]
        again = verdicts.slow_nodes(verdicts.rates(self._groups(alone, SEARCH_S, gemm=True).lines, nodes), need)
        for node in slow.keys() & again.keys():
            share = max(slow[node], again[node])
            judged[node].add("compute", f"it computes at {share:.0%} of the others' rate")


def _has_left(said: Sequence[steps.Line]) -> bool:
    return any(line.get("stage") in ("end", "failed") for line in said)


def main() -> None:
    """Looks at all nodes of the allocation that this process is in; ends with 1 where one is left out."""
    try:
        job, job_id = Job.load(Path(sys.argv[1])), os.environ["SLURM_JOB_ID"]
        look = Preflight(job, job_id, newest_start(Path(job.run)) + 1)
        report = look.look(slurm.nodes_of(job_id))
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (IndexError, KeyError):
        print("error: give a launch folder, inside a Slurm job: python -m cluster.preflight RUN/launch/000001",
              file=sys.stderr)  # fmt: skip
        raise SystemExit(2) from None
    report.save(Path(job.run))
    print(report.text)
    raise SystemExit(1 if report.nodes("bad") or report.problem else 0)


if __name__ == "__main__":
    main()
