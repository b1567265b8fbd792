"""`pha status`: what a run is doing, how well, and what happens to it next."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pretrain.cli_output import Json, print_json, print_table
from pretrain.errors import RunFailed

if TYPE_CHECKING:
    from cluster.status import RunStatus

SHOWN_RANKS = 16


def status(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read and check every byte of its checkpoints.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a run is doing, from its files alone: no connection to the run is needed."""
    from cluster.status import read_status

    found = read_status(run, _state_of)
    problems = _verify(run) if verify else {}
    if as_json:
        print_json({**found.as_dict(), **({"problems": problems} if verify else {})})
    else:
        _show(found)
        for step, words in problems.items():
            print(f"checkpoint of step {step}: {words or 'every byte is as it was written'}")
    if any(problems.values()):
        raise RunFailed(f"A checkpoint of {run} is damaged; a start uses the newest one that is not.")


def _show(found: RunStatus) -> None:
    for line in lines(found):
        print(line)
    slow = sorted(found.ranks, key=lambda r: (r.step, -r.age_s))[:SHOWN_RANKS] if len(found.ranks) > 64 else found.ranks
    rows = [
        (str(r.rank), r.host, r.phase, str(r.step), "" if r.compute_s is None else f"{1000 * r.compute_s:.0f} ms",
         f"{r.age_s:.0f} s ago") for r in slow
    ]  # fmt: skip
    if rows:
        which = f"the {len(rows)} furthest behind of {len(found.ranks)} ranks" if len(slow) < len(found.ranks) else ""
        print_table(which or "ranks", ("rank", "host", "phase", "step", "own part", "heartbeat"), rows)


def lines(found: RunStatus) -> list[str]:
    """What is said before the table of ranks."""
    went = found.progress
    rate = f", {went.tokens_per_s:,.0f} tokens/s" if went.tokens_per_s else ""
    loss = f", loss {went.loss:.4f}" if went.loss is not None else ""
    said = [
        f"{found.run}: {found.state}",
        f"  step {went.step:,} of {went.steps:,} ({went.step / max(1, went.steps):.1%}), {went.tokens:,} tokens"
        f"{loss}{rate}",
        f"  next: {found.next}",
    ]
    if went.eta_s and found.state not in ("done", "given up", "resting"):
        said.append(f"  left: {duration(went.eta_s)} of training at this pace")
    saved = "none yet" if found.whole is None else f"step {found.whole:,}, {duration(found.saved_s or 0.0)} ago"
    said.append(f"  newest whole checkpoint: {saved} (kept: {', '.join(map(str, found.checkpoints)) or 'none'})")
    if went.goodput is not None and went.tokens:
        parts = ", ".join(f"{name} {seconds / went.wall_s:.1%}" for name, seconds in went.parts_s.items())
        said.append(f"  goodput {went.goodput:.1%} of {duration(went.wall_s)}: {parts}; the rest: queues and waits")
    causes = ", ".join(f"{count} {kind}" for kind, count in found.causes.items())
    said.append(f"  starts: {found.starts}" + (f", earlier ones ended by: {causes}" if causes else ""))
    if found.quarantined:
        said.append(f"  {found.quarantined} damaged block(s) of data left out, see quarantine.jsonl")
    if found.exits and not found.ends:
        first = found.exits[0]
        said.append(f"  start {found.starts} ended: rank {first['rank']} {first['kind']} ({first['words']})")
    said += [f"  straggler: {words}" for words in found.stragglers]
    for event in found.ends:
        what = event.get("cause", {}).get("kind") or event.get("job") or ""
        then = f" → {event['decision']}" if "decision" in event else ""
        head = " ".join(f"{event['event']} {event.get('start', '')} {what}".split())
        said.append(f"  supervisor: {head}{then}: {event.get('words', '')}".rstrip(": "))
    return said


def duration(seconds: float) -> str:
    """As people say it: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _state_of(job: str) -> str | None:
    """What Slurm says of a job, where there is one that answers."""
    from cluster import slurm
    from cluster.errors import ClusterError

    try:
        return slurm.state_of(job) if shutil.which("scontrol") else None
    except ClusterError:
        return None


def _verify(run: Path) -> dict[int, str]:
    from pretrain.checkpoint import CheckpointStore

    return {one.step: "; ".join(one.problems()) for one in CheckpointStore(run / "checkpoints").all()}
