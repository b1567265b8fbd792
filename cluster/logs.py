"""What the ranks of a launched run said, and how its jobs are ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from cluster import slurm
from cluster.errors import ClusterError
from cluster.job import FOLDER
from cluster.policy import first_cause
from cluster.run_files import STOP, events, exit_notes, newest_start
from cluster.supervise import WELL


def last_words(run: Path, lines: int, first_error: bool) -> Iterator[tuple[str, str]]:
    """(Where it stands, the last lines) of the newest start's ranks, or of the one that ended the last failed start.

    Raises ClusterError when there is nothing to show.
    """
    if not (run / "logs").is_dir():
        raise ClusterError(f"{run} is no run with logs; give the folder of a run.")
    if first_error:
        yield _first_error(run, lines)
        return
    starts = sorted((run / "logs").glob("start-*"))
    place = starts[-1] if starts else run / "logs"
    files = list(place.glob("rank-*")) or list(place.glob("agent-*"))  # torchrun's, where it started no rank
    shown = [path for path in sorted(files, key=lambda path: (len(path.name), path.name)) if path.stat().st_size]
    if not shown:
        yield _of_job(run, lines)
    for path in shown:
        yield str(path), _tail(path, lines)


def _of_job(run: Path, lines: int) -> tuple[str, str]:
    """What the newest job has said itself: the only thing there is when it ended before any rank began."""
    outputs = sorted((run / "logs").glob("job-*.out"), key=lambda path: path.stat().st_mtime)
    if not outputs:
        raise ClusterError(f"No rank of {run} has written yet, and no job: `pha status {run}` says what it waits for.")
    return f"no rank has written yet; {outputs[-1]}", _tail(outputs[-1], lines)


def _first_error(run: Path, lines: int) -> tuple[str, str]:
    failed = [e for e in events(run) if e.get("event") == "end" and e.get("cause", {}).get("kind") not in WELL]
    if failed:
        start, cause = int(failed[-1]["start"]), failed[-1]["cause"]
    else:
        starts = sorted((int(p.name) for p in (run / "exits").glob("*") if p.name.isdigit()), reverse=True)
        causes = ((n, first_cause(notes, len(notes)).as_dict()) for n in starts if (notes := exit_notes(run, n)))
        start, cause = next(((n, c) for n, c in causes if c["kind"] not in WELL), (0, {}))
    if not cause and not newest_start(run):
        return _of_job(run, lines)
    if not cause:
        raise ClusterError(f"No start of {run} has failed.")
    rank = cause.get("rank")
    title = f"start {start}, step {cause.get('step')}, {cause.get('kind')}: {cause.get('words')}"
    places = [run / "logs" / f"start-{start:06d}" / f"rank-{rank}.out", run / "logs" / f"rank-{rank}.log"]
    place = next((path for path in places if path.is_file()), None)
    return title, f"{place}\n{_tail(place, lines)}" if place else "(it left no file)"


def _tail(path: Path, lines: int) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def end(run: Path, now: bool) -> str:
    """Asks the run to save and rest (a file `STOP`), and takes queued jobs back; `now` cancels all. Returns words."""
    jobs = jobs_of(run)
    if not jobs:
        raise ClusterError(f"{run} has not been launched on Slurm; to end a run elsewhere, touch {run / 'STOP'}.")
    (run / STOP).touch()
    ended, problems, why = list[str](), list[str](), ""
    for job in reversed(jobs):  # the successor before the one that it waits for
        try:
            state = slurm.state_of(job)
            if state == "PENDING" or (now and state in ("RUNNING", "SUSPENDED")):
                slurm.command(["scancel", job])
                ended.append(job)
        except ClusterError as error:
            problems.append(f"job {job}")
            why = str(error)
    words = f"{run / STOP} asks the run to save and end; cancelled: {', '.join(ended) or 'no job'}"
    if problems:
        raise ClusterError(f"{words}; not known of {', '.join(problems)}, so ask again: {why}")
    return f"{words}. To go on, remove that file and launch the run again."


def jobs_of(run: Path) -> list[str]:
    """The numbers of all jobs that were submitted for this run, in order."""
    found = []
    for path in sorted((run / FOLDER).glob("*/submitted.json")):
        try:
            found.append(str(json.loads(path.read_text(encoding="utf-8"))["job"]))
        except (OSError, ValueError, KeyError):
            continue
    return [*found, *(str(event["job"]) for event in events(run) if event.get("event") == "successor")]
