"""What a job's supervisor knows of its nodes: when to look at them, which to use first, and whom to cordon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster import cordon
from cluster.errors import ClusterError
from cluster.job import Job
from cluster.policy import Cause
from cluster.preflight import Preflight, Report, Settings
from cluster.run_files import newest_start
from cluster.stragglers import Straggler

NODES_MAY_BE_AT_FAULT = ("silent", "hang", "killed", "peer lost")
"""Kinds of a start's end after which the nodes are looked at again."""


class Health:
    """Of the nodes of one job. It never raises: a run must not end because its nodes could not be looked at."""

    def __init__(self, job: Job, job_id: str, record: Callable[..., None], stop: Callable[[], bool]) -> None:
        """`record` writes an event of the run; `stop` says whether the supervisor is asked to stop."""
        self.job, self.job_id, self._record, self._stop = job, job_id, record, stop
        self.settings, self.list = Settings.of(job), cordon.of_job(job)
        self._due = self.settings.on
        self._known: dict[str, str] = {}
        """Node → state, by the last look."""

    def heard(self, cause: Cause) -> None:
        """A start has ended like this."""
        if cause.kind in NODES_MAY_BE_AT_FAULT:
            self._due = self.settings.on

    def best_first(self, nodes: Sequence[str], blamed: Sequence[str]) -> list[str]:
        """The nodes that can be used, the best first; looks at them where that is due.

        After the good ones come those with smaller defects, then those that are cordoned (by other runs), then those
        that this job blames. Nodes on which nothing can run are not among them.
        """
        fresh = [node for node in nodes if node not in self._known]
        if nodes and self.settings.on and (self._due or fresh):
            self._look(nodes)
        held = self.list.active()
        usable = [node for node in nodes if self._known.get(node) != "bad"]
        return sorted(
            usable, key=lambda node: (node in blamed, node in held, self._known.get(node) == "poor")
        )  # stable: else in Slurm's order

    def excluded(self, blamed: Sequence[str]) -> list[str]:
        """The nodes that a successor is to do without: blamed, bad, and cordoned ones."""
        bad = [node for node, state in self._known.items() if state == "bad"]
        try:
            held = cordon.avoided(self.list)
        except ClusterError:
            held = []
        return list(dict.fromkeys([*blamed, *bad, *held]))

    def straggles(self, straggler: Straggler) -> None:
        """A rank holds the others up; its node is cordoned only where the config asks for that."""
        if self.job.preflight.get("cordon_stragglers") and not straggler.alone:
            self._cordon(straggler.host, "its ranks compute slowly", straggler.words)

    def _look(self, nodes: Sequence[str]) -> None:
        start = newest_start(Path(self.job.run)) + 1
        try:
            report = Preflight(self.job, self.job_id, start, self._stop).look(nodes)
        except (ClusterError, OSError) as error:
            self._record("preflight", start=start, problem=str(error))
            return
        if self._stop():
            return
        self._due = False
        self._known = {verdict.node: verdict.state for verdict in report.verdicts}
        path = report.save(Path(self.job.run))
        print(report.text, flush=True)
        self._tell(report, path)

    def _tell(self, report: Report, path: Path | None) -> None:
        found: dict[str, Any] = {v.node: v.words for v in report.verdicts if v.state == "bad"}
        poor = {v.node: v.words for v in report.verdicts if v.state == "poor"}
        words = f"{len(report.nodes('good'))} of {len(report.verdicts)} nodes are well"
        words += "".join(f"; {node} is left out: {why}" for node, why in found.items())
        words += "".join(f"; {node}: {why}" for node, why in poor.items())
        self._record(
            "preflight", start=report.start, job=self.job_id, seconds=report.seconds, left_out=found, poor=poor,
            problem=report.problem, file=str(path or ""), words=f"{words}. {report.problem}".strip(),
        )  # fmt: skip
        for node, why in found.items():
            self._cordon(node, why, f"{path or 'see the job’s log'}, start {report.start}")

    def _cordon(self, node: str, reason: str, evidence: str) -> None:
        hours = float(self.job.preflight.get("cordon_hours", 24.0))
        try:
            entry = self.list.add(node, reason, hours, evidence, self.job.run, self.job_id)
        except ClusterError as error:
            self._record("no cordon", node=node, words=str(error))
            return
        print(cordon.note(entry), flush=True)
