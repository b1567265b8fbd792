"""What this machine sees of Slurm, and what its settings mean for a run."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence

from cluster import slurm
from cluster.doctor_lines import Line, missing, ok, warning

COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
LEAST_VERSION = (20, 11)
"""The first with `srun --overlap`, which starts beside a lost node's step."""
TIMEOUT_S = 15.0
Lack = Callable[[str, str, str], Line]
"""How serious it is where something is not there."""


def lines(nodes: int) -> Iterator[Line]:
    """All about Slurm; `nodes` is how many the run is to have. On one node training is possible without."""
    lack = missing if nodes > 1 else warning
    absent = [name for name in COMMANDS if shutil.which(name) is None]
    if len(absent) == len(COMMANDS):
        advice = "`pha train --supervise` trains on this machine; for a cluster use a login node."
        if nodes > 1:
            yield missing("slurm", "is not here", f"cluster.nodes is {nodes}: {advice}")
        else:
            yield ok("slurm", "is not here", advice)
        return
    if absent:
        yield lack("slurm", f"no {', '.join(absent)}", "`pha launch` cannot work; install Slurm's client commands.")
        return
    told = _told(["scontrol", "ping"])
    if " is UP" not in told:
        fix = "`pha launch` waits or is refused, and `pha train` works; look at SLURM_CONF, or ask its people."
        yield lack("controller", told or "does not answer", fix)
        return
    yield ok("controller", told)
    yield from _version(lack)
    settings = _settings(_asked(["scontrol", "show", "config"]))
    yield from munge(settings)
    yield from meanings(settings)
    yield from partitions(_asked(["scontrol", "--oneliner", "show", "partition"]), nodes, lack)


def _asked(arguments: Sequence[str], given: str | None = None) -> str:
    """What a command prints, or its complaint, or that it does not end."""
    try:
        done = subprocess.run(arguments, input=given, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"{arguments[0]} has not answered for {TIMEOUT_S:g} s"
    except OSError as error:
        return f"{arguments[0]}: {error.strerror}"
    return done.stdout.strip() or done.stderr.strip()


def _told(arguments: Sequence[str]) -> str:
    """The last line of it."""
    return (_asked(arguments).splitlines() or [""])[-1]


def _version(lack: Lack) -> Iterator[Line]:
    told = _told(["sinfo", "--version"])
    match = re.search(r"(\d+)\.(\d+)", told)
    if match is None:
        yield warning("slurm", told, "Its version is not known; one from 20.11 on is needed.")
    elif tuple(map(int, match.groups())) < LEAST_VERSION:
        yield lack("slurm", told, "srun has no --overlap, without which a lost node blocks a run; use 20.11 or newer.")
    else:
        yield ok("slurm", told)


def _settings(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def munge(settings: Mapping[str, str]) -> Iterator[Line]:
    """Whether a credential can be made and read here."""
    if settings.get("AuthType") not in (None, "auth/munge"):
        return
    credential = _asked(["munge", "-n"])
    if not credential.startswith("MUNGE:"):
        yield warning("munge", credential, "Slurm's commands are refused where munged does not run; start it.")
        return
    told = _asked(["unmunge"], credential)
    if "Success" in told:
        yield ok("munge", "a credential is made and read")
    else:
        yield warning("munge", told.splitlines()[0] if told else "no word", "Look at munged's log, key and clock.")


def meanings(settings: Mapping[str, str]) -> Iterator[Line]:
    """What the controller's settings mean for a run."""
    wait = slurm.seconds(settings.get("KillWait", ""))
    if wait is not None:
        words = (
            f"After scancel a run has {wait:g} s to save; a checkpoint that takes longer is lost; `pha cancel` waits."
        )
        yield (warning if wait < 30 else ok)("KillWait", f"{wait:g} s", words)
    timeout = slurm.seconds(settings.get("SlurmdTimeout", ""))
    if timeout is not None:
        words = f"Slurm takes a node for lost after {timeout:g} s; the supervisor's heartbeats do not wait for that."
        yield ok("SlurmdTimeout", f"{timeout:g} s", words)
    track = settings.get("ProctrackType", "")
    if track in ("proctrack/linuxproc", "proctrack/pgid"):
        yield warning("ProctrackType", track, "Ranks can outlive their job; the pre-flight finds them before a start.")
    mode = settings.get("PreemptMode", "OFF")
    if "OFF" not in mode.split(","):
        words = "A preempted run saves within the partition's GraceTime, and a successor goes on."
        yield ok("PreemptMode", mode, words)


def partitions(text: str, nodes: int, lack: Lack = missing) -> Iterator[Line]:
    """Those that this user sees, with their limits, from `scontrol --oneliner show partition`."""
    found = []
    for line in text.splitlines():
        values = dict(re.findall(r"(\w+)=(\S*)", line))
        if "PartitionName" not in values:
            continue
        found.append(values)
        grace = values.get("GraceTime", "0")
        name = values["PartitionName"] + (" (default)" if values.get("Default") == "YES" else "")
        state, size, most, longest = (values.get(key, "?") for key in ("State", "TotalNodes", "MaxNodes", "MaxTime"))
        words = f"{state}, {size} nodes, at most {most} a job and {longest}; GraceTime {grace} s"
        if values.get("State") != "UP":
            yield warning("partition", f"{name}: {words}", "No job starts there; choose another in cluster.partition.")
        else:
            yield ok("partition", f"{name}: {words}")
    total = [int(v["TotalNodes"]) for v in found if v.get("TotalNodes", "").isdigit()]
    if not found:
        yield lack("partition", "none", "No job can be submitted; ask those who run the cluster for access.")
    elif nodes > max(total, default=nodes):
        yield missing("partition", f"none has {nodes} nodes", f"Set cluster.nodes to at most {max(total)}.")
