"""The list of nodes that are not to be used for a while: a file that all runs of a group may share.

Each line is one JSON object that adds a node or takes it off again, the last one of a node counts, and what has
expired is as if it were not there. Lines are only ever appended, under a lock where the file system has one; a line
begins with a line end, so that one that was torn by a crash costs no other. What cannot be read is left out.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster import slurm
from cluster.errors import ClusterError
from cluster.job import Job

FILE = "cordon.jsonl"
"""Its name in a run's folder, where `cluster.cordon` names no other."""
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LONGEST = 2000


@dataclass(frozen=True)
class Entry:
    """Why a node is not to be used, or (`removed`) that it may be again."""

    node: str
    since: float
    """Seconds of the clock, as `expires`."""
    expires: float
    reason: str
    evidence: str = ""
    """What was seen, and where it is recorded."""
    run: str = ""
    job: str = ""
    by: str = ""
    """The user."""
    removed: bool = False


class Cordon:
    """One such file; it need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self, node: str, reason: str, hours: float, evidence: str = "", run: str = "", job: str = "",
        now: float | None = None,
    ) -> Entry:  # fmt: skip
        """Cordons a node for so many hours. Raises ClusterError where the file cannot be written."""
        began = time.time() if now is None else now
        entry = Entry(
            _valid(node), began, began + 3600 * hours, reason[:_LONGEST], evidence[:_LONGEST], run, job, _user()
        )
        self._append(entry)
        return entry

    def remove(self, node: str, reason: str = "", now: float | None = None) -> bool:
        """Takes a node off the list; whether it was on it. Raises ClusterError."""
        began = time.time() if now is None else now
        if node not in self.active(began):
            return False
        self._append(Entry(_valid(node), began, began, reason[:_LONGEST], by=_user(), removed=True))
        return True

    def active(self, now: float | None = None) -> dict[str, Entry]:
        """Node → why it is cordoned, of those that are now, the longest first."""
        moment = time.time() if now is None else now
        newest = {entry.node: entry for entry in self._entries()}
        held = [e for e in newest.values() if not e.removed and e.expires > moment]
        return {entry.node: entry for entry in sorted(held, key=lambda entry: entry.since)}

    def _entries(self) -> Iterable[Entry]:
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        for line in text.splitlines():
            with contextlib.suppress(ValueError, TypeError):
                entry = Entry(**json.loads(line))
                # whoever may write the file must not be able to put options on Slurm's command line
                if _NODE.fullmatch(entry.node) and entry.since <= entry.expires:
                    yield entry

    def _append(self, entry: Entry) -> None:
        line = "\n" + json.dumps(asdict(entry)) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                with contextlib.suppress(OSError):  # a file system without locks appends whole writes all the same
                    fcntl.flock(file, fcntl.LOCK_EX)
                file.write(line.encode())
                os.fsync(file.fileno())
        except OSError as error:
            raise ClusterError(
                f"The cordon file {self.path} cannot be written ({error.strerror}); give this user the right to, or "
                "name another one in cluster.cordon."
            ) from None


def _valid(node: str) -> str:
    if not _NODE.fullmatch(node):
        raise ClusterError(f"{node!r} is no name of a node; give one as sinfo shows it.")
    return node


def _user() -> str:
    with contextlib.suppress(KeyError, OSError):
        return getpass.getuser()
    return str(os.getuid())


def of_job(job: Job) -> Cordon:
    """The one of a launched run."""
    return Cordon(Path(job.preflight.get("cordon") or Path(job.run) / FILE))


def avoided(cordon: Cordon) -> list[str]:
    """The cordoned nodes that this cluster has: Slurm refuses to exclude others. Raises ClusterError."""
    held = list(cordon.active())
    if not held:
        return []
    known = slurm.nodes()
    return [node for node in held if node in known]


def submit(job: Job) -> tuple[str, list[str]]:
    """Hands a new job to Slurm without the cordoned nodes, or with them where there are too few others.

    Returns its number and the nodes that it does without. Raises ClusterError.
    """
    avoid = avoided(of_job(job))
    if avoid:
        try:
            return slurm.submit(job, exclude=avoid), avoid
        except ClusterError:  # also refused without an exclusion if that is not the reason
            pass
    return slurm.submit(job), []


def note(entry: Entry) -> str:
    """A message to those who run the cluster, ready to be sent."""

    def clock(moment: float) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(moment))

    lines = [
        f"Subject: node {entry.node} seems to be defective",
        "",
        f"Node: {entry.node}",
        f"Seen: {clock(entry.since)}" + (f", in job {entry.job}" if entry.job else ""),
        f"What: {entry.reason}",
        f"Evidence: {entry.evidence or 'none beside the above'}",
        f"Until {clock(entry.expires)} our runs do not use it (cordoned by {entry.by or 'a run'}).",
        "Please have a look, and drain it if you find the same:",
        f"    scontrol update NodeName={entry.node} State=DRAIN Reason='see this message'",
    ]
    return "\n".join(lines) + "\n"
