"""`pha launch`, `pha logs`, `pha cancel` and supervised training: the commands that join a run with `cluster`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pretrain.cli_check import preflight_settings
from pretrain.cli_output import Json, print_json
from pretrain.errors import RunError

if TYPE_CHECKING:
    from cluster.job import Job
    from pretrain.config import RunConfig

PACKAGES = ("pretrain", "model", "data_pipeline", "cluster")
SLURM_ROUNDING_S = 90
UNKNOWN_SAVE_S = 30.0
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides such as train.steps=500.")]
RunArgument = Annotated[Path, typer.Argument(help="A run directory.")]


def supervise(config: RunConfig, command: list[str], ranks: int) -> int:
    """Starts `command` as so many ranks on this machine until the run is done; returns the exit code."""
    from cluster.local import LocalJob
    from cluster.policy import Budget
    from cluster.supervise import Limits, Owner, Supervisor
    from pretrain.rundir import RunDirectory

    directory = RunDirectory(config.run_dir)
    directory.create()

    class Terminal(Owner):
        """Somebody at a terminal of this machine."""

        def start(self) -> LocalJob:
            return LocalJob(command, ranks, directory.logs)

        def tell(self, words: str) -> None:
            print(words, file=sys.stderr, flush=True)

    limits, budget = Limits(silent_after(config)), Budget(config.cluster.relaunches)
    return Supervisor(directory.path, ranks, Terminal(), limits, budget).supervise()


def silent_after(config: RunConfig) -> dict[str, float]:
    """Phase of a heartbeat → seconds until a supervisor takes the rank for silent; `` is any other phase."""
    from cluster.supervise import OUTSIDE_S

    limits = {phase: config.watchdog.of(phase) for phase in ("train", "save", "validate", "start")}
    limits[""] = limits["start"]
    return {phase: limit + OUTSIDE_S if limit else 0.0 for phase, limit in limits.items()}


def launch(
    config: Annotated[Path, typer.Argument(help="A YAML file, for example configs/openwebtext-pha-125m.yaml.")],
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Short for cluster.nodes.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the script; nothing is written.")] = False,
    as_json: Json = False,
) -> None:
    """Train on Slurm, from a login node, until the run is done.

    The script, the frozen config and a copy of the code go to RUN/launch/; editing this checkout changes nothing of
    a run that is queued or starts again.
    """
    from cluster import cordon, slurm
    from cluster.errors import ClusterError
    from cluster.job import SCRIPT, freeze, new_folder
    from cluster.logs import jobs_of
    from cluster.run_files import checkpoint_steps
    from pretrain import config_file
    from pretrain.rundir import RunDirectory

    resolved = config_file.load(config, [*(overrides or ()), *([f"cluster.nodes={nodes}"] if nodes else [])])
    run = resolved.run_dir.absolute()
    if dry_run:
        print(slurm.render(_job(resolved, run, run / "launch" / "NUMBER")), end="")
        return
    if (run / "STOP").exists():
        raise RunError(f"{run / 'STOP'} asks this run not to train; remove that file to go on.")
    if live := [job for job in jobs_of(run) if slurm.state_of(job) in slurm.LIVE]:
        raise RunError(f"Job {live[0]} trains {run} already, or will; `pha cancel {run}` ends it.")
    if max(checkpoint_steps(run), default=0) >= resolved.train.steps:
        raise RunError(
            f"{run} has reached step {resolved.train.steps}, its last; raise train.steps to train it further."
        )
    RunDirectory(run).check(resolved, settled=False)
    _warn(resolved, run)
    folder = new_folder(run)
    (run / "logs").mkdir(exist_ok=True)
    job = _job(resolved, run, folder)
    root = Path(__file__).resolve().parents[1]
    (folder / "environment.txt").write_text(_environment(), encoding="utf-8")
    freeze(folder, config_file.dump(resolved.model_copy(update={"run_dir": run})), [root / name for name in PACKAGES])
    job.save()
    (folder / SCRIPT).write_text(slurm.render(job), encoding="utf-8")
    try:
        if doubts := slurm.doubts(job):
            print(f"warning: {doubts}", file=sys.stderr)
        number, avoided = cordon.submit(job)
    except ClusterError:
        shutil.rmtree(folder)  # nothing was launched
        raise
    (folder / "submitted.json").write_text(json.dumps({"job": number}) + "\n", encoding="utf-8")
    if as_json:
        print_json({"job": number, "folder": str(folder), "script": str(folder / SCRIPT)})
        return
    if avoided:
        print(f"cordoned nodes that it does without: {', '.join(avoided)} (pha cordon list {run})")
    elif held := cordon.avoided(cordon.of_job(job)):
        print(f"warning: too few other nodes, so that cordoned ones may be used: {', '.join(held)}", file=sys.stderr)
    print(f"job {number} trains {run} on {job.nodes} node(s), {job.ranks} rank(s): {folder / SCRIPT}")
    print(f"pha status {run} shows what it does; pha cancel {run} saves and ends it.")


def _job(config: RunConfig, run: Path, folder: Path) -> Job:
    from cluster.job import Job
    from cluster.run_files import save_seconds
    from pretrain.deepspeed_config import batch_split

    cluster = config.cluster
    batch_split(config, cluster.nodes * cluster.ranks)
    save = save_seconds(run)
    lead = cluster.lead_s or round(SLURM_ROUNDING_S + 2 * (save or UNKNOWN_SAVE_S))
    limit = cluster.time_s
    if limit is not None and limit <= lead + 2 * (save or 0.0):
        raise RunError(
            f"cluster.time ({cluster.time}) leaves no time to train: {lead} s before its end the run is asked to stop "
            f"(cluster.lead_s), and a checkpoint takes {save or 0:.0f} s; ask for more time."
        )
    directives = cluster.directives(
        job_name=f"pha-{run.name}",
        chdir=Path.cwd(),
        output=run / "logs" / "job-%j.out",
        nodes=cluster.nodes + cluster.spare_nodes,
        ntasks_per_node=cluster.ranks,
        cpus_per_task=cluster.cpus_per_rank,
        gpus_per_node=cluster.gpus_per_node or None,
    )
    return Job(
        run=str(run),
        folder=str(folder),
        python=str(cluster.python or sys.executable),
        nodes=cluster.nodes,
        spare_nodes=cluster.spare_nodes,
        ranks_per_node=cluster.ranks,
        gpus_per_node=cluster.gpus_per_node,
        cpus_per_rank=cluster.cpus_per_rank,
        batches=[size for _, size in config.batches],
        elastic=cluster.elastic,
        elastic_least=cluster.elastic_least,
        directives=directives,
        modules=list(cluster.modules),
        env=dict(cluster.env),
        interface=cluster.interface,
        lead_s=lead,
        silent_s=silent_after(config),
        relaunches=cluster.relaunches,
        successors=cluster.successors,
        launcher=cluster.launcher,
        preflight=preflight_settings(config, run),
    )


def _environment() -> str:
    """The interpreter and the packages that the launch sees, a line each."""
    from importlib.metadata import distributions

    found = {f"{one.name}=={one.version}" for one in distributions()}
    return "\n".join([f"python=={sys.version.split()[0]}", *sorted(found)]) + "\n"


def _warn(config: RunConfig, run: Path) -> None:
    """What Slurm's own settings mean for this run."""
    from cluster import slurm
    from cluster.run_files import save_seconds

    known, asked = slurm.partitions(), config.cluster.partition
    if asked and not set(asked.split(",")) <= set(known):
        raise RunError(f"cluster.partition ({asked}) is none of this cluster's: {', '.join(known)}; choose one.")
    save = save_seconds(run)
    waits = {
        "KillWait, for a job that is cancelled": slurm.seconds(slurm.settings().get("KillWait", "")),
        "GraceTime of the partition, for one that is preempted": slurm.grace_s(config.cluster.partition),
    }
    for name, wait in waits.items():
        if save is not None and wait and save > wait:
            print(
                f"warning: a checkpoint of this run took {save:.0f} s, and Slurm waits {wait:.0f} s ({name}) before it "
                "kills: what was trained since the last checkpoint may then be lost; `pha cancel` waits.",
                file=sys.stderr,
            )
    for name, path in config.data.paths.items():
        if isinstance(path, Path) and not path.exists():
            raise RunError(f"The dataset {name} ({path}) is not there; build it, or give its place in data.path.")


def logs(
    run: RunArgument,
    first_error: Annotated[bool, typer.Option("--first-error", help="Only the rank that failed first.")] = False,
    lines: Annotated[int, typer.Option(min=1, help="Last lines of each file.")] = 20,
) -> None:
    """Show the last words of the newest start's ranks; with --first-error those of the one that failed first."""
    from cluster.logs import last_words

    for title, text in last_words(run, lines, first_error):
        print(f"==> {title} <==\n{text}")


def cancel(
    run: RunArgument,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for a checkpoint.")] = False,
) -> None:
    """Save and end a launched run, and take its queued jobs back."""
    from cluster.logs import end

    print(end(run, now))
