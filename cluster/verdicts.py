"""From what nodes say of themselves to a verdict on each: nothing is asked here, so that all of it can be tested."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cluster.node_probe import END, HELLO, RANK

FULL_BYTES = 16e6
"""A file system with less is full."""
SKEW_S = 2.0
"""Clocks that differ by more spoil the order of what is recorded."""
SLOW_WRITE_S = 10.0
"""For 64 KiB, made durable and read back."""
_COMPARED = ("python", "torch", "deepspeed", "numpy", "triton", "driver", "operstate", "mtu", "speed")
_HARMLESS = ("memory", "ranks", "versions")
"""Checks whose own failure says nothing of the node."""
_SHARED = ("run", "data")
"""Checks of what all nodes see alike."""
_EXPLAINED = {
    "driver": "the GPU driver",
    "operstate": "the interface's state",
    "mtu": "the interface's MTU",
    "speed": "the interface's speed",
}

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Need:
    """What a node must have, in bytes and shares; 0 asks for nothing."""

    memory: float = 1e9
    tmp: float = 5e8
    shm: float = 6.4e7
    disk: float = 1e9
    slow: float = 0.7
    """Of the median rate of a matrix product."""
    link_mb_s: float = 10.0


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a node."""

    check: str
    words: str
    fatal: bool
    """Whether the node is left out; else it is only used when there are too few others."""


@dataclass
class Verdict:
    """On one node."""

    node: str
    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    """What was measured."""

    @property
    def state(self) -> str:
        """`good`, `poor` (used where there are too few good ones) or `bad` (left out)."""
        return "bad" if any(f.fatal for f in self.findings) else "poor" if self.findings else "good"

    @property
    def words(self) -> str:
        """All findings in one line."""
        return "; ".join(finding.words for finding in self.findings)

    def add(self, check: str, words: str, fatal: bool = False) -> None:
        """A further finding."""
        self.findings.append(Finding(check, words, fatal))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "state": self.state}


def judge(
    nodes: Sequence[str],
    lines: Mapping[str, Sequence[Line]],
    need: Need,
    gone: Callable[[str | None], bool] = lambda job: True,
) -> dict[str, Verdict]:
    """A verdict on each node from the lines of `cluster.node_probe`.

    Args:
        nodes: those that were asked, in order.
        lines: node → what it said, each line with `arrived`.
        need: what a node must have.
        gone: whether the job that a stray rank belongs to (None: to no job) has ended.
    """
    verdicts = {node: _one(node, lines.get(node, []), need, gone) for node in nodes}
    _excuse(verdicts)
    _compare(verdicts)
    return verdicts


def _excuse(verdicts: Mapping[str, Verdict]) -> None:
    """What all nodes have alike is no node's defect: without them there would be nothing to run on."""
    said = [verdict for verdict in verdicts.values() if "clock" in verdict.figures]
    for check in {finding.check for verdict in said for finding in verdict.findings if finding.fatal}:
        alike = all(any(f.check == check and f.fatal for f in verdict.findings) for verdict in said)
        if alike and (check in _SHARED or len(said) > 1):
            for verdict in said:
                verdict.findings = [replace(f, fatal=False) if f.check == check else f for f in verdict.findings]


def _one(node: str, lines: Sequence[Line], need: Need, gone: Callable[[str | None], bool]) -> Verdict:
    verdict = Verdict(node)
    if not any(line.get("check") == HELLO for line in lines):
        verdict.add("answer", "it did not answer in time", fatal=True)
        return verdict
    # Delays make a clock look late and never early: the line that came fastest tells most.
    verdict.figures["clock"] = max(line["time"] - line["arrived"] for line in lines)
    done = [str(line.get("check")) for line in lines]
    if END not in done:
        verdict.add("answer", f"it did not come to an end: the last that it said was of {done[-1]}", fatal=True)
    for line in lines:
        check = str(line.get("check"))
        if check == RANK:
            _stray(verdict, line, gone)
        elif "error" in line:
            verdict.add(check, f"{check}: {line['error']}", fatal=check not in _HARMLESS)
        elif check in _JUDGES:
            _JUDGES[check](verdict, line, need)
    return verdict


def _stray(verdict: Verdict, line: Line, gone: Callable[[str | None], bool]) -> None:
    job = line.get("job")
    if gone(job):
        of = f"job {job}, which has ended" if job else "no job"
        verdict.add("ranks", f"process {line['pid']} is a rank of {of} ({line['config']})")


def _memory(verdict: Verdict, line: Line, need: Need) -> None:
    verdict.figures["memory_gb"] = round(line["free"] / 1e9, 2)
    if line["free"] < need.memory:
        verdict.add(
            "memory", f"{line['free'] / 1e9:.2f} GB of memory are free, and {need.memory / 1e9:g} are asked for"
        )


def _space(name: str, wanted: Callable[[Need], float]) -> Callable[[Verdict, Line, Need], None]:
    place = {"tmp": "/tmp", "shm": "/dev/shm", "run": "the run's folder"}[name]

    def judge_space(verdict: Verdict, line: Line, need: Need) -> None:
        verdict.figures[f"{name}_gb"] = round(line["free"] / 1e9, 2)
        verdict.figures[f"{name}_write_s"] = line.get("write_s")
        if line["free"] < FULL_BYTES:
            verdict.add(name, f"{place} is full ({line['free'] / 1e6:.1f} MB are free)", fatal=True)
        elif line["free"] < wanted(need):
            words = f"{place} has {line['free'] / 1e9:.2f} GB free, and {wanted(need) / 1e9:g} are asked for"
            verdict.add(name, words)
        if line.get("inodes") is not None and line["inodes"] < 16:
            verdict.add(name, f"{place} has no inodes left", fatal=True)
        if line.get("write_s", 0.0) > SLOW_WRITE_S:
            verdict.add(name, f"a small file in {place} takes {line['write_s']:.1f} s to write and read")

    return judge_space


def _versions(verdict: Verdict, line: Line, need: Need) -> None:
    verdict.figures["versions"] = {k: v for k, v in line.items() if k in _COMPARED or k == "kernel"}


def _interface(verdict: Verdict, line: Line, need: Need) -> None:
    verdict.figures["address"] = line["address"]
    verdict.figures.setdefault("interface", {}).update({k: line[k] for k in _COMPARED if k in line})


def _gpus(verdict: Verdict, line: Line, need: Need) -> None:
    verdict.figures["gpus"] = {k: line[k] for k in ("count", "kinds", "driver", "hottest")}
    for fatal, words in line["defects"]:
        verdict.add("gpus", words, fatal=fatal)


_JUDGES: dict[str, Callable[[Verdict, Line, Need], None]] = {
    "memory": _memory,
    "tmp": _space("tmp", lambda need: need.tmp),
    "shm": _space("shm", lambda need: need.shm),
    "run": _space("run", lambda need: need.disk),
    "versions": _versions,
    "interface": _interface,
    "gpus": _gpus,
}


def _compare(verdicts: Mapping[str, Verdict]) -> None:
    """What is only wrong because most others are otherwise: versions, settings and clocks."""
    said = [verdict for verdict in verdicts.values() if "clock" in verdict.figures]
    for name in _COMPARED:
        values = {v.node: value for v in said if (value := _value(v, name)) is not None}
        counts = Counter(values.values()).most_common(2)
        if len(counts) < 2 or 2 * counts[0][1] <= len(values):
            continue  # there is no majority that could be right
        usual = counts[0][0]
        for node, value in values.items():
            if value != usual:
                words = f"{_EXPLAINED.get(name, name)} is {value}, and {usual} on most others"
                verdicts[node].add("versions", words)
    if len(said) > 2:
        middle = statistics.median(verdict.figures["clock"] for verdict in said)
        for verdict in said:
            skew = verdict.figures["clock"] = round(verdict.figures["clock"] - middle, 3)
            if abs(skew) > SKEW_S:
                verdict.add("clock", f"its clock is {abs(skew):.1f} s {'ahead' if skew > 0 else 'late'}")


def _value(verdict: Verdict, name: str) -> Any:
    for part in ("versions", "interface", "gpus"):
        if (value := verdict.figures.get(part, {}).get(name)) is not None:
            return value
    return None


def judge_computing(verdicts: Mapping[str, Verdict], lines: Mapping[str, Sequence[Line]], nodes: Sequence[str]) -> str:
    """Adds what the nodes' `pretrain.link_probe` says of each by itself: whether it comes to compute at all.

    Returns why none is judged where none does: that is no node's defect.
    """
    if not any(line.get("stage") == "device" for node in nodes for line in lines.get(node, [])):
        errors = [line["error"] for node in nodes for line in lines.get(node, []) if line.get("stage") == "failed"]
        why = errors[0] if errors else "torch is not imported in time"
        return f"No node comes to compute ({why}), so that none is judged."
    for node in nodes:
        said = lines.get(node, [])
        if any(line.get("stage") == "device" for line in said):
            continue
        failed = next((str(line["error"]) for line in said if line.get("stage") == "failed"), "")
        last = said[-1]["stage"] if said else "nothing"
        words = f"its device does not compute: {failed}" if failed else f"it does not come to compute (last: {last})"
        verdicts[node].add("compute", words, fatal=True)
    return ""


def works(group: Sequence[str], lines: Mapping[str, Sequence[Line]], need: Need) -> bool:
    """Whether all members of a group summed right, and fast enough."""
    for node in group:
        reduced = [line for line in lines.get(node, []) if line.get("stage") == "reduced"]
        if not reduced or not reduced[0]["right"] or reduced[0]["mb_s"] < need.link_mb_s:
            return False
    return True


def rates(lines: Mapping[str, Sequence[Line]], nodes: Sequence[str]) -> dict[str, float]:
    """Node → FLOP/s of its slowest device, of those that told."""
    told = {node: line["rates"] for node in nodes for line in lines.get(node, []) if line.get("stage") == "gemm"}
    return {node: min(values) for node, values in told.items() if values}


def slow_nodes(rate: Mapping[str, float], need: Need) -> dict[str, float]:
    """Node → its share of the median rate, of those whose share is too small."""
    if len(rate) < 3 or not need.slow:
        return {}
    middle = statistics.median(rate.values())
    return {node: value / middle for node, value in rate.items() if value < need.slow * middle}


def table(verdicts: Sequence[Verdict]) -> str:
    """For people: a line a node, the bad ones last."""
    rank = {"good": 0, "poor": 1, "bad": 2}
    width = max((len(verdict.node) for verdict in verdicts), default=0)
    lines = []
    for verdict in sorted(verdicts, key=lambda one: rank[one.state]):
        figures = verdict.figures
        shown = [
            f"{figures[key]:g} {unit}" for key, unit in (("memory_gb", "GB free"), ("tmp_gb", "GB in /tmp"),
                                                         ("mb_s", "MB/s"), ("gflops", "GFLOP/s")) if key in figures
        ]  # fmt: skip
        lines.append(f"{verdict.node:<{width}}  {verdict.state:<4}  {verdict.words or ', '.join(shown)}")
    return "\n".join(lines)
