"""`pha doctor`, `pha cordon`, and what a launch says about how nodes are looked at."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pretrain.cli_output import Json, print_json, print_table

if TYPE_CHECKING:
    from cluster.cordon import Cordon
    from cluster.doctor import Wanted
    from pretrain.config import RunConfig

cordon_app = typer.Typer(help="Nodes that runs are to keep off for a while, and why.", no_args_is_help=True)
Where = Annotated[Path, typer.Argument(help="A launched run's folder, a config (YAML), or the list's file itself.")]
Node = Annotated[str, typer.Argument(help="The node, as sinfo shows it.")]


def preflight_settings(config: RunConfig, run: Path) -> dict[str, Any]:
    """For the job's file: plain values, which `cluster.preflight` reads on the nodes."""
    from cluster.cordon import FILE

    cluster = config.cluster
    return {
        "on": cluster.preflight,
        "limit_s": cluster.preflight_limit_s,
        "need": {
            "memory": cluster.min_memory_gb * 1e9,
            "tmp": cluster.min_tmp_gb * 1e9,
            "shm": cluster.min_shm_gb * 1e9,
            "disk": cluster.min_disk_gb * 1e9,
            "slow": cluster.slow_node,
            "link_mb_s": cluster.min_link_mb_s,
        },
        "data": [str(path.absolute()) for path in config.data.paths.values() if isinstance(path, Path)],
        "cordon": str(cluster.cordon.expanduser().absolute() if cluster.cordon else run / FILE),
        "cordon_hours": cluster.cordon_hours,
        "cordon_stragglers": cluster.cordon_stragglers,
    }


@cordon_app.command("list")
def list_cordoned(where: Where, as_json: Json = False) -> None:
    """Show which nodes are cordoned, until when and why."""
    from dataclasses import asdict

    cordon = _open(where)
    entries = cordon.active().values()
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    rows = [
        (entry.node, f"{(entry.expires - time.time()) / 3600:.1f} h", entry.by, entry.job, entry.reason)
        for entry in entries
    ]
    print_table(f"{cordon.path}: {len(rows)} node(s) cordoned", ("node", "left", "by", "job", "reason"), rows)


@cordon_app.command("add")
def add(
    where: Where,
    node: Node,
    reason: Annotated[str, typer.Option(help="What was seen.")],
    hours: Annotated[float, typer.Option(min=0.01, help="For so long.")] = 24.0,
    evidence: Annotated[str, typer.Option(help="Where it can be read.")] = "",
) -> None:
    """Cordon a node, and print a message for those who run the cluster."""
    from cluster import slurm
    from cluster.cordon import note
    from cluster.errors import ClusterError

    print(note(_open(where).add(node, reason, hours, evidence)), end="")
    with contextlib.suppress(ClusterError):  # a list may be kept where there is no Slurm
        if node not in slurm.nodes():
            print(f"warning: sinfo here knows no node {node}; the entry has no effect here.", file=sys.stderr)


@cordon_app.command("remove")
def remove(where: Where, node: Node) -> None:
    """Let runs use a node again."""
    cordon = _open(where)
    was = cordon.remove(node, "by hand")
    print(f"{node} {'may be used again' if was else 'was not cordoned'}: {cordon.path}")


@cordon_app.command("note")
def show_note(where: Where, node: Node) -> None:
    """Print a message about a cordoned node for those who run the cluster."""
    from cluster.cordon import note
    from cluster.errors import ClusterError

    entries = _open(where).active()
    if node not in entries:
        raise ClusterError(f"{node} is not cordoned; `pha cordon list {where}` shows which nodes are.")
    print(note(entries[node]), end="")


def _open(where: Path) -> Cordon:
    """The list of a run as it was launched, of a config, or in this file."""
    from cluster.cordon import FILE, Cordon, of_job
    from cluster.errors import ClusterError
    from cluster.job import Job

    if where.is_dir():
        jobs = sorted((where / "launch").glob("*/job.json"))
        return of_job(Job.load(jobs[-1].parent)) if jobs else Cordon(where / FILE)
    if where.suffix in (".yaml", ".yml"):
        from pretrain import config_file

        config = config_file.load(where, [])
        return Cordon(Path(preflight_settings(config, config.run_dir.absolute())["cordon"]))
    if not where.exists() and where.suffix != ".jsonl":
        raise ClusterError(f"{where} is not there; give a run's folder, a config, or a list whose name ends in .jsonl.")
    return Cordon(where)


def doctor(
    config: Annotated[Path | None, typer.Argument(help="A YAML file: what it asks for is looked at too.")] = None,
    as_json: Json = False,
) -> None:
    """Show what this machine lacks for training, and what to do about it. Ends with 0 where training is possible."""
    from dataclasses import asdict

    from cluster import doctor as machine
    from cluster import doctor_slurm
    from cluster.doctor_lines import possible

    wanted = _wanted(config) if config is not None else machine.Wanted()
    lines = [*machine.machine(wanted), *doctor_slurm.lines(wanted.nodes)]
    if as_json:
        print_json({"possible": possible(lines), "lines": [asdict(line) for line in lines]})
    else:
        width = max(len(line.name) for line in lines)
        for line in lines:
            print(f"{line.state:<7}  {line.name:<{width}}  {line.found}")
            if line.advice:
                print(f"{'':<7}  {'':<{width}}  {line.advice}")
        print(f"Training is {'possible' if possible(lines) else 'not possible'} here.")
    raise typer.Exit(0 if possible(lines) else 1)


def _wanted(path: Path) -> Wanted:
    from cluster.doctor import Wanted
    from pretrain import config_file

    config = config_file.load(path, [])
    compiles = "optim.implementation=deepspeed_cpu" if config.optim.implementation == "deepspeed_cpu" else ""
    if config.train.compile and not config.cluster.gpus_per_node:
        compiles = compiles or "train.compile"
    return Wanted(
        run=config.run_dir,
        data=[place for place in config.data.paths.values() if isinstance(place, Path)],
        nodes=config.cluster.nodes,
        gpus=config.cluster.gpus_per_node,
        interface=config.cluster.interface,
        compiles=compiles,
    )
