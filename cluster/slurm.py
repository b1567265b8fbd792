"""Slurm, by its commands alone: a job's script, and what is asked of the controller. No torch, no root, no sacct."""

from __future__ import annotations

import datetime
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cluster.errors import ClusterError
from cluster.job import CODE, SCRIPT, Job, Scripted

_RUNS_THE_COPY = {
    "PYTHONUNBUFFERED": ("1", "lines reach the logs when they are written"),
    "PYTHONSAFEPATH": ("1", "code that lies where the job was launched is not taken instead of that copy"),
}
"""Environment variable → (value, why), for every job."""
_COLLECTIVES = {
    "TORCH_CPP_LOG_LEVEL": ("ERROR", "silences 'hostname of the client socket cannot be retrieved', which is harmless"),
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": ("1", "a failed collective ends its rank instead of waiting for ever"),
    "TORCH_NCCL_DUMP_ON_TIMEOUT": ("1", "NCCL writes who was in which collective when one times out"),
    "TORCH_NCCL_TRACE_BUFFER_SIZE": ("2000", "collectives that are remembered for that"),
}
"""The same, for jobs whose ranks meet."""


def render(job: Job) -> str:
    """The sbatch script of a run: one file that a person can read, and submit by hand. Raises ClusterError."""
    exports = explained(_COLLECTIVES)
    if job.interface is not None:
        exports.append("# ranks meet on this interface, and not on the first one that has an address")
        exports += [
            f"export {name}={shlex.quote(job.interface)}" for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        ]
    return script(
        job,
        f"The run {job.run}, written by `pha launch`. Submit it again and the run goes on.",
        [
            "# The supervisor is asked to stop so long before the limit; Slurm may do it up to a minute earlier.",
            f"#SBATCH --signal=B:USR1@{job.lead_s}",
            "# A lost node costs the run a restart and not the allocation; Slurm's own requeue would wait for two "
            "minutes.",
            "#SBATCH --no-kill",
            "#SBATCH --no-requeue",
        ],
        exports,
        "cluster.job_supervisor",
    )


def script(job: Scripted, title: str, directives: Sequence[str], exports: Sequence[str], program: str) -> str:
    """What all scripts have in common. Raises ClusterError.

    Args:
        title: what it is, in a line.
        directives: further lines of #SBATCH, with their reasons.
        exports: further lines that set the environment.
        program: the module that the job runs, from the copy of the code in its folder.
    """
    lines = [
        "#!/bin/bash",
        f"# {' '.join(title.split())}",
        *(f"#SBATCH --{name}={directive(name, value)}" for name, value in job.directives.items()),
        *directives,
        "#SBATCH --open-mode=append",
        "set -eu",
        *(f"module load {shlex.quote(name)}" for name in job.modules),
        "# The code as it was at the launch.",
        f"export PYTHONPATH={shlex.quote(str(Path(job.folder) / CODE))}",
        *explained(_RUNS_THE_COPY),
        *exports,
        *(f"export {name}={shlex.quote(value)}" for name, value in sorted(job.env.items())),
        f"exec {shlex.quote(job.python)} -m {program} {shlex.quote(job.folder)}",
    ]
    return "\n".join(lines) + "\n"


def explained(variables: Mapping[str, tuple[str, str]]) -> list[str]:
    """Lines that set variables, each below its reason."""
    return [line for name, (value, why) in variables.items() for line in (f"# {why}", f"export {name}={value}")]


def directive(name: str, value: str) -> str:
    """The value as it can stand in a #SBATCH line. Raises ClusterError."""
    if re.search(r"[\"'`$\\\n]", value):
        raise ClusterError(
            f"The option --{name} of the job would be {value!r}, and quotes, $, backslashes and line ends cannot stand "
            "in a #SBATCH line; choose another name or folder."
        )
    return f'"{value}"' if re.search(r"\s", value) else value


PATIENCE_S = 600.0
"""So long a running job waits for a controller that does not answer: it may be restarting, and the job runs on."""
_UNREACHABLE = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Connection refused",
    "Zero Bytes were",
    "has not answered",
)


def patiently(arguments: Sequence[str], sleep: Callable[[float], None] = time.sleep) -> str:
    """`command`, again and again while the controller cannot be reached. Raises ClusterError."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return command(arguments)
        except ClusterError as error:
            if not unreachable(error) or time.monotonic() > deadline:
                raise
            sleep(5.0)


def unreachable(error: ClusterError) -> bool:
    """Whether it tells of a controller that did not answer, and not of a refusal."""
    return any(words in str(error) for words in _UNREACHABLE)


def command(arguments: Sequence[str]) -> str:
    """The output of one of Slurm's commands. Raises ClusterError with its own words."""
    return _run(arguments).stdout


def _run(arguments: Sequence[str], timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout_s, check=False)
    except FileNotFoundError:
        raise ClusterError(
            f"{arguments[0]} is not here: this machine is no login node of a Slurm cluster; use `pha train "
            "--supervise` on a machine without Slurm, or --dry-run to see the script."
        ) from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{arguments[0]} has not answered for {timeout_s:g} s; ask again when it does.") from None
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())
        if silent := next((mark for mark in _UNREACHABLE if mark in words), ""):
            raise ClusterError(f"Slurm's controller does not answer {arguments[0]} ({silent}); try again when it does.")
        raise ClusterError(f"{arguments[0]} refuses: {words or f'code {done.returncode}'}")
    return done


def doubts(job: Scripted) -> str:
    """Why `sbatch --test-only` would not take the job, in words; empty where it would.

    It also refuses while too few nodes are up, where sbatch queues the job: so this is for a warning. Raises
    ClusterError where the controller does not answer.
    """
    try:
        submit(job, test_only=True)
    except ClusterError as error:
        if unreachable(error):
            raise
        return f"{error} (by --test-only; the job is queued if sbatch takes it)"
    return ""


def submit(job: Scripted, *, test_only: bool = False, exclude: Sequence[str] = ()) -> str:
    """Hands the job's script to sbatch; returns its number, or with `test_only` what sbatch thinks of it.

    `exclude` are nodes not to be given, beside those of the script.
    """
    script = str(Path(job.folder) / SCRIPT)
    if test_only:
        return " ".join(_run(["sbatch", "--test-only", script]).stderr.split())
    return command(["sbatch", "--parsable", *_exclude(job, exclude), script]).strip().partition(";")[0]


def _exclude(job: Scripted, nodes: Sequence[str]) -> list[str]:
    """sbatch's option, which replaces the script's."""
    banned = [*filter(None, [job.directives.get("exclude", "")]), *nodes]
    return [f"--exclude={','.join(banned)}"] if nodes else []


def submit_after(job: Job, after: str, exclude: Sequence[str] = (), *, patient: bool = False) -> str:
    """Submits the script again, to wait for the end of job `after`, however it ends; returns the number.

    A controller that took the job and could not say so is asked again by a comment of this pair's own, so that two
    never follow one.

    Args:
        exclude: nodes not to be given, beside those of the script.
    """
    comment = f"{job.folder} after {after}"
    arguments = ["sbatch", "--parsable", f"--dependency=afterany:{after}", f"--comment={comment}"]
    arguments += _exclude(job, exclude)
    deadline = time.monotonic() + (PATIENCE_S if patient else 0.0)
    while True:
        try:
            return command([*arguments, str(Path(job.folder) / SCRIPT)]).strip().partition(";")[0]
        except ClusterError as error:
            if not unreachable(error) or time.monotonic() >= deadline:
                raise
        time.sleep(5.0)
        waiting = patiently(["squeue", "--me", "--noheader", "--states=PENDING", "--format=%i|%k"]).splitlines()
        for number, _, said in (line.strip().partition("|") for line in waiting):
            if said == comment:
                return number


def exclude(job_id: str, nodes: Sequence[str]) -> None:
    """A job that waits is not to be given these nodes. Raises ClusterError, also where too few others are left."""
    patiently(["scontrol", "update", f"jobid={job_id}", f"ExcNodeList={','.join(nodes)}"])


def settings() -> dict[str, str]:
    """Slurm's configuration, as `scontrol show config` tells it."""
    found = {}
    for line in command(["scontrol", "show", "config"]).splitlines():
        name, equals, value = line.partition("=")
        if equals:
            found[name.strip()] = value.strip()
    return found


def partitions() -> list[str]:
    """Their names. Raises ClusterError."""
    return sorted(set(command(["sinfo", "--noheader", "--format=%R"]).split()))


def nodes() -> set[str]:
    """The names of this cluster's nodes. Raises ClusterError."""
    return set(command(["sinfo", "--noheader", "--Node", "--format=%N"]).split())


def grace_s(partition: str | None) -> float | None:
    """[s] Between a preemption's first signal and its last, by the partition (None: the default one).

    None where nothing is said. Raises ClusterError.
    """
    told = command(["scontrol", "--oneliner", "show", "partition", *filter(None, [partition])])
    line = next((line for line in told.splitlines() if partition or "Default=YES" in line), "")
    match = re.search(r"\bGraceTime=(\d+)\b", line)
    return float(match.group(1)) if match else None


def seconds(value: str) -> float | None:
    """The number of a setting such as `30 sec`; None where it has none."""
    match = re.match(r"(\d+)", value)
    return float(match.group(1)) if match else None


def hostnames(nodelist: str) -> list[str]:
    """`n[1-3]` → n1, n2, n3."""
    return command(["scontrol", "show", "hostnames", nodelist]).split() if nodelist else []


def nodes_of(job_id: str) -> list[str]:
    """Those that the job has now: an allocation without --kill-on-lost-node shrinks."""
    return hostnames(patiently(["squeue", "--noheader", "--jobs", job_id, "--format=%N"]).strip())


_LOST = ("down", "fail", "not_resp", "unk", "power", "reboot")


SETTLE_S = 30.0
"""So long a node may be silent without being lost: after one had crashed, Slurm showed healthy ones as silent for ten
seconds (seen with 32 nodes; most likely because it asks nodes by way of each other)."""


def answering(nodes: Sequence[str], wanted: int = 0, sleep: Callable[[float], None] = time.sleep) -> list[str]:
    """Of these nodes the ones that Slurm has not lost; draining ones go on for the job that has them.

    Where fewer than `wanted` answer, those that are silent but not given up yet are waited for, up to `SETTLE_S`.
    """
    deadline = time.monotonic() + SETTLE_S
    while nodes:
        well, silent = _by_answer(nodes)
        if len(well) >= wanted or not silent or time.monotonic() > deadline:
            return well
        sleep(2.0)
    return []


def _by_answer(nodes: Sequence[str]) -> tuple[list[str], list[str]]:
    """(Those that answer, those that do not at the moment); lost ones are in neither."""
    told = patiently(["sinfo", "--noheader", "--Node", "--nodes", ",".join(nodes), "--format=%N %T"])
    states: dict[str, str] = {}
    for line in told.splitlines():
        name, _, state = line.strip().partition(" ")
        states[name] = state.lower()
    left = [n for n in nodes if not states.get(n, "unk").startswith(_LOST)]
    return [n for n in left if not states[n].endswith("*")], [n for n in left if states[n].endswith("*")]


RANKS, LOOKING = "ranks", "preflight"
"""The names of steps whose tasks train, and of those that look at nodes; on a lost node a step stays on the books."""


def steps_of(job_id: str) -> list[str]:
    """The numbers, `17.0`, of the job's running steps that train."""
    return _steps(patiently([*_STEPS, job_id]), RANKS)


def looking_steps(job_id: str) -> list[str]:
    """Those that look at nodes. Raises ClusterError at once where the controller does not answer."""
    return _steps(command([*_STEPS, job_id]), LOOKING)


_STEPS = ["squeue", "--noheader", "--steps", "--format=%i %j", "--jobs"]


def _steps(told: str, name: str) -> list[str]:
    parts = (line.strip().partition(" ") for line in told.splitlines())
    return [step for step, _, called in parts if called.strip() == name and re.fullmatch(r"\d+\.\d+", step)]


LIVE = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING")


def state_of(job_id: str) -> str:
    """PENDING, RUNNING, COMPLETING, CANCELLED, ...; empty where the controller has forgotten the job.

    Raises ClusterError where it does not answer.
    """
    try:
        told = command(["scontrol", "--oneliner", "show", "job", job_id])
    except ClusterError as error:
        if "Invalid job id" in str(error):
            return ""
        raise
    match = re.search(r"\bJobState=(\S+)", told)
    return match.group(1) if match else ""


def end_of(job_id: str) -> float | None:
    """When the time of a running job is over, in seconds since 1970; None where it has no end. Raises ClusterError."""
    told = command(["squeue", "--noheader", "--jobs", job_id, "--format=%e"]).strip()
    try:
        return datetime.datetime.fromisoformat(told).timestamp()  # in the time zone of this machine
    except ValueError:
        return None


def preempted(job_id: str) -> bool:
    """Whether the job must make room for another one; while it does, its state does not tell.

    Raises ClusterError where the controller does not answer for long, or does not know the job.
    """
    match = re.search(r"\bPreemptTime=(\S+)", patiently(["scontrol", "--oneliner", "show", "job", job_id]))
    return match is not None and match.group(1) not in ("None", "Unknown")
