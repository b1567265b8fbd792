"""`pha data build --launch` and `pha data status`: the commands that join a build with `cluster`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pretrain.cli_output import Json, print_json, print_table
from pretrain.errors import RunError

if TYPE_CHECKING:
    from cluster.array import ArrayJob
    from data_pipeline.config import BuildConfig
    from pretrain.array_config import ArrayConfig

PACKAGES = ("data_pipeline", "cluster")
"""That a task needs."""


def array_config(section: Any, settings: Sequence[str], tasks: int | None, origin: str) -> ArrayConfig:
    """The section `cluster` of a build's file, with what the command line says instead. Raises RunError."""
    from pretrain.array_config import ArrayConfig
    from pretrain.config_file import apply_override, validated

    if not isinstance(section, Mapping):
        raise RunError(f"{origin}: 'cluster' must be a mapping of settings such as `tasks: 8`.")
    tree = dict(section)
    for setting in settings:
        apply_override(tree, setting)
    if tasks is not None:
        tree["tasks"] = tasks
    return validated(ArrayConfig, tree, f"{origin}, cluster")


def launches(output: Path) -> Path:
    """Where the launches of a dataset's builds are: beside it."""
    output = output.absolute()
    return output.with_name(f"{output.name}.launch")


def launch_build(config: BuildConfig, cluster: ArrayConfig, dry_run: bool, as_json: bool) -> None:
    """Plan a build, and submit an array whose tasks do it. Raises DataError, ClusterError, RunError."""
    import yaml

    from cluster import array, slurm
    from cluster.errors import ClusterError
    from cluster.job import SCRIPT, freeze, numbered_folder
    from data_pipeline.build import prepare
    from data_pipeline.build_array import Order
    from data_pipeline.claims import Patience

    config = config.model_copy(update={"output": config.output.absolute()})
    if dry_run:
        print(array.render(_job(config, cluster, launches(config.output) / "NUMBER")), end="")
        return
    _refuse_a_second(config.output)
    fingerprint = prepare(config, progress=not as_json)
    if fingerprint is None:
        print_json({"job": None, "output": str(config.output)}) if as_json else print(f"{config.output} is built.")
        return
    folder = numbered_folder(launches(config.output))
    (folder / "logs").mkdir()
    patience = Patience(silent_s=cluster.silent_s, tries=cluster.tries)
    Order(fingerprint, str(config.output), cluster.cpus_per_task, patience).save(folder)
    root = Path(__file__).resolve().parents[1]
    settings = {**config.model_dump(mode="json"), "cluster": cluster.model_dump(mode="json")}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    freeze(folder, text, [root / name for name in PACKAGES])
    job = _job(config, cluster, folder)
    job.save()
    (folder / SCRIPT).write_text(array.render(job), encoding="utf-8")
    try:
        if doubts := slurm.doubts(job):
            print(f"warning: {doubts}", file=sys.stderr)
        number = slurm.submit(job)
    except ClusterError:
        shutil.rmtree(folder)  # nothing was launched
        raise
    (folder / array.SUBMITTED).write_text(json.dumps({"job": number}) + "\n", encoding="utf-8")
    if as_json:
        print_json({"job": number, "folder": str(folder), "script": str(folder / SCRIPT)})
        return
    print(f"job {number} builds {config.output} with {cluster.tasks} task(s): {folder / SCRIPT}")
    print(f"pha data status {config.output} shows how far it is; scancel {number} ends it, and keeps what is finished.")


def _job(config: BuildConfig, cluster: ArrayConfig, folder: Path) -> ArrayJob:
    from cluster.array import ArrayJob

    return ArrayJob(
        title=f"Builds {config.output}; written by `pha data build --launch`.",
        folder=str(folder),
        python=str(cluster.python or sys.executable),
        command=["-m", "data_pipeline.build_task", str(folder)],
        directives=cluster.directives(
            job_name=f"pha-data-{config.output.name}",
            chdir=Path.cwd(),
            output=folder / "logs" / "%A_%a.out",
        ),
        modules=list(cluster.modules),
        env=dict(cluster.env),
        lead_s=cluster.lead_s,
        restarts=cluster.restarts,
        successors=cluster.successors,
    )


def _refuse_a_second(output: Path) -> None:
    """Raises RunError if an earlier launch has tasks that wait or run."""
    from cluster import array

    for folder in sorted(launches(output).glob("[0-9]*")):
        for number in array.jobs_of(folder):
            if array.states(number):
                raise RunError(f"Job {number} builds {output} already, or will; scancel {number} ends it.")


def data_status(
    output: Annotated[Path, typer.Argument(help="The directory of a dataset whose build was launched.")],
    as_json: Json = False,
) -> None:
    """Show how far a launched build is: stages, tasks, and the first error."""
    from data_pipeline.build_array import BUILT, FAILED
    from data_pipeline.build_status import read_build_status

    folders = sorted(launches(output).glob("[0-9]*"))
    if not folders:
        raise RunError(f"No build of {output} was launched here; pha data build CONFIG --launch launches one.")
    found = read_build_status(folders[-1])
    jobs = _slurm_states(folders[-1])
    if as_json:
        print_json({**found.as_dict(), "jobs": jobs})
        return
    title = f"{found.output}: {found.state}"
    if found.state not in (BUILT, FAILED) and jobs == {}:
        title += "; no task waits or runs any more: launch the build again to go on"
    if found.stages and found.state != BUILT:
        rows = [(s.name, f"{s.done:,}", "?" if s.total is None else f"{s.total:,}") for s in found.stages]
        print_table(title, ("stage", "done", "of"), rows)
        title = f"launch {folders[-1].name}"
    starts = _starts(folders[-1])
    rows_of_tasks = [
        (
            t.task,
            t.host,
            t.state,
            ", ".join(t.units) or t.stage,
            str(t.done),
            str(max(0, starts.get(t.task, 1) - 1)),
            f"{t.age_s:.0f} s",
        )
        for t in found.tasks
    ]
    columns = ("task", "host", "state", "at", "units", "restarts", "last sign")
    print_table(title, columns, rows_of_tasks)
    if waiting := sorted(set(jobs or {}) - {t.task for t in found.tasks}):
        print(f"waiting for a place: {', '.join(waiting[:8])}{', …' if len(waiting) > 8 else ''}")
    if found.errors:
        print(f"first error: {found.errors[0]}")
    if found.state == FAILED:
        print(f"failed: {found.words}")


def _slurm_states(folder: Path) -> dict[str, str] | None:
    """Tasks that wait or run; None where Slurm cannot be asked."""
    from cluster import array
    from cluster.errors import ClusterError

    try:
        return {task: state for number in array.jobs_of(folder) for task, state in array.states(number).items()}
    except ClusterError:
        return None


def _starts(folder: Path) -> dict[str, int]:
    from cluster import array

    found: dict[str, int] = {}
    for event in array.events(folder):
        if event.get("event") == "start":
            found[event["task"]] = found.get(event["task"], 0) + 1
    return found
