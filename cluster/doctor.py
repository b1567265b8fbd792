"""What a machine lacks for training, and what that means: each check gives lines that a person can act on.

Heavy libraries are asked by their metadata, or imported in a process of their own, so that all of it takes a few
seconds.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from cluster import gpus, node_probe
from cluster.doctor_lines import Line, missing, ok, warning

PYTHON = ((3, 11), (3, 14))
"""The first version that serves, and the first that does not any more."""
PROJECT = "pha-pretrain"
TORCH_S = 60.0
_LEAST_DISK, _LEAST_SHM, _LEAST_FILES = 5e9, 64e6, 4096
_TIME_ERROR = 5
"""What the kernel answers (adjtimex) while nobody keeps its clock right."""
_ASK_TORCH = """
import json, torch
gpu = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip,
    "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if gpu else [],
    "gloo": torch.distributed.is_gloo_available(), "nccl": torch.distributed.is_nccl_available(),
}))
"""


@dataclass(frozen=True)
class Wanted:
    """What is to be trained here, as far as it is known."""

    run: Path = Path("runs")
    """The run's folder, or the one that runs are made in."""
    data: list[Path] = field(default_factory=list)
    nodes: int = 1
    gpus: int = 0
    interface: str | None = None
    compiles: str = ""
    """The setting that needs a C++ compiler, if one does."""


def machine(wanted: Wanted) -> Iterator[Line]:
    """All lines about this machine, but for Slurm."""
    asked = _start_torch()
    checks: list[Callable[[], Iterator[Line]]] = [
        python,
        packages,
        lambda: compiler(wanted),
        lambda: memory(),
        lambda: folder(wanted.run),
        lambda: datasets(wanted.data),
        shared_memory,
        limits,
        lambda: network(wanted),
        clock,
        lambda: devices(asked, wanted),
    ]
    for check in checks:
        try:
            yield from check()
        except Exception as error:  # a check that fails must not keep the others from being read
            yield warning("a check", f"{type(error).__name__}: {error}", "What it was to look at is not known.")


def python() -> Iterator[Line]:
    """The interpreter's version."""
    here = sys.version_info[:2]
    name = f"{sys.version.split()[0]} ({sys.executable})"
    if PYTHON[0] <= here < PYTHON[1]:
        yield ok("python", name)
    else:
        first, last = (".".join(map(str, version)) for version in PYTHON)
        yield missing("python", name, f"Nothing runs; install a Python from {first} on and before {last}.")


def packages() -> Iterator[Line]:
    """Everything that the project's own metadata asks for."""
    try:
        asked = [one for one in metadata.requires(PROJECT) or [] if "extra ==" not in one]
    except metadata.PackageNotFoundError:
        yield warning(
            "packages", f"{PROJECT} is not installed", "What it needs is not known; run pip install -e . in it."
        )
        asked = ["deepspeed", "numpy", "pydantic", "safetensors", "sentencepiece", "torch"]
    absent, wrong = [], []
    for one in asked:
        match = re.match(r"[A-Za-z0-9._-]+", one)
        name = match.group() if match else one
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            absent.append(name)
            continue
        if not _fits(one, version):
            wrong.append(f"{name} {version} ({one})")
    if absent:
        yield missing(
            "packages", f"absent: {', '.join(absent)}", "Nothing trains; run pip install -e . in the project."
        )
    elif wrong:
        yield warning(
            "packages", "; ".join(wrong), "Other versions than those that are tested; run pip install -e . again."
        )
    else:
        yield ok("packages", f"all {len(asked)} of the project, deepspeed {_version('deepspeed')}")


def _fits(requirement: str, version: str) -> bool:
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return True
    return Requirement(requirement).specifier.contains(version.partition("+")[0], prereleases=True)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def compiler(wanted: Wanted) -> Iterator[Line]:
    """What DeepSpeedCPUAdam and torch.compile on a CPU are built with."""
    beside = str(Path(sys.executable).parent)
    path = os.pathsep.join([beside, os.environ.get("PATH", "")])
    named = os.environ.get("CXX", "g++")
    absent = []
    if not any(shutil.which(name, path=path) for name in (named, "g++", "clang++")):
        absent.append("a C++ compiler (g++)")
    if not shutil.which("ninja", path=path):
        absent.append("ninja")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        absent.append("Python's headers (python3-dev)")
    if not absent:
        yield ok("compiler", f"{named}, ninja, Python.h")
    elif wanted.compiles:
        yield missing(
            "compiler", f"absent: {', '.join(absent)}", f"{wanted.compiles} cannot work; install them, or change it."
        )
    else:
        words = "optim.implementation=deepspeed_cpu and train.compile on CPUs cannot be built; install them if wanted."
        yield warning("compiler", f"absent: {', '.join(absent)}", words)


def memory() -> Iterator[Line]:
    """Free memory, and the limit of this process's control group."""
    seen = node_probe.free_memory()
    limited = "" if seen["group"] is None else f", limited to {seen['group'] / 1e9:.1f} by a control group"
    words = f"{seen['free'] / 1e9:.1f} GB free of {seen['total'] / 1e9:.1f}{limited}"
    if seen["free"] < 2e9:
        yield warning("memory", words, "Only the smallest models fit; end other processes or take a larger machine.")
    else:
        yield ok("memory", words)


def folder(run: Path) -> Iterator[Line]:
    """Whether runs can be written, and how much."""
    place = run.absolute()
    while not place.is_dir():
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        words = "No run can be started; give this user the right to write there, or set run_dir."
        yield missing("run folder", f"{place} cannot be written", words)
        return
    wrote = node_probe.write_and_read(place)
    free = node_probe.room(place)["free"]
    words = f"{place}: {free / 1e9:.1f} GB free, a small file in {1000 * wrote['write_s']:.0f} ms"
    if free < _LEAST_DISK:
        yield warning(
            "run folder", words, "Checkpoints may not fit (16 bytes a parameter each); free some or set run_dir."
        )
    else:
        yield ok("run folder", words)


def datasets(directories: list[Path]) -> Iterator[Line]:
    """Whether the config's datasets are there, with shards of the right sizes."""
    for directory in directories:
        try:
            seen = node_probe.dataset(directory)
        except (OSError, ValueError, KeyError, TypeError) as error:
            words = "The run cannot read it; build it with `pha data build`, or correct data.path."
            yield missing("dataset", f"{directory}: {error}", words)
            continue
        yield ok("dataset", f"{directory}: {seen['shards']} shards")


def shared_memory() -> Iterator[Line]:
    """/dev/shm, in which processes of one machine exchange data."""
    place = Path("/dev/shm")
    if not place.is_dir():
        yield warning(
            "/dev/shm", "is not there", "NCCL and data workers may fail; run on Linux, or mount a tmpfs there."
        )
        return
    seen = os.statvfs(place)
    size, free = seen.f_blocks * seen.f_frsize, seen.f_bavail * seen.f_frsize
    words = f"{free / 1e9:.2f} GB free of {size / 1e9:.2f}"
    if free < _LEAST_SHM:
        fix = "NCCL between GPUs of one machine fails; give the container more (docker --shm-size=1g) or empty it."
        yield warning("/dev/shm", words, fix)
    else:
        yield ok("/dev/shm", words)


def limits() -> Iterator[Line]:
    """What a process may open and lock."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _LEAST_FILES:
        fix = f"Many ranks or shards run out of files; raise it with ulimit -n {_LEAST_FILES} (at most {hard} here)."
        yield warning("open files", str(soft), fix)
    else:
        yield ok("open files", str(soft))
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    shown = "unlimited" if locked == resource.RLIM_INFINITY else f"{locked / 1e6:g} MB"
    if Path("/sys/class/infiniband").is_dir() and locked != resource.RLIM_INFINITY:
        fix = "InfiniBand cannot pin its memory; set memlock to unlimited in limits.conf and in slurmd's unit."
        yield warning("locked memory", shown, fix)
    else:
        yield ok("locked memory", shown)


def network(wanted: Wanted) -> Iterator[Line]:
    """Interfaces, and what the own name leads to."""
    names = sorted(name for _, name in socket.if_nameindex())
    shown = []
    for name in names:
        try:
            shown.append(f"{name} {node_probe.interface(name)['address']}")
        except OSError:
            shown.append(f"{name} (no address)")
    if wanted.interface and wanted.interface not in names:
        fix = "Perhaps only the nodes have it; else correct cluster.interface."
        yield warning("interfaces", f"{', '.join(shown)}; no {wanted.interface}", fix)
    else:
        yield ok("interfaces", ", ".join(shown))
    host = socket.gethostname()
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        fix = "Ranks cannot find each other; add the name to /etc/hosts or the DNS."
        yield missing("own name", f"{host} leads nowhere ({error})", fix)
        return
    if address.startswith("127.") and wanted.nodes > 1:
        fix = "From other nodes ranks here are not found by it; set cluster.interface, or mend /etc/hosts."
        yield warning("own name", f"{host} is {address}", fix)
    else:
        yield ok("own name", f"{host} is {address}")


def clock() -> Iterator[Line]:
    """Whether something keeps the clock right, by the kernel."""
    timex = ctypes.create_string_buffer(512)  # struct timex with modes = 0: only a question
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    except (OSError, AttributeError):
        state = -1
    if state == _TIME_ERROR:
        fix = "Times in the records of several machines do not compare; start chrony or systemd-timesyncd."
        yield warning("clock", "nobody keeps it right", fix)
    elif state < 0:
        yield warning("clock", "the kernel does not tell", "Look at `timedatectl` if several machines take part.")
    else:
        yield ok("clock", "is kept right")


def _start_torch() -> subprocess.Popen[str]:
    """Python, torch inside it; it is asked for its words when all else has been looked at."""
    return subprocess.Popen(
        [sys.executable, "-c", _ASK_TORCH], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def devices(asked: subprocess.Popen[str], wanted: Wanted) -> Iterator[Line]:
    """torch, the GPUs, and triton for them."""
    try:
        out, complaints = asked.communicate(timeout=TORCH_S)
    except subprocess.TimeoutExpired:
        asked.kill()
        out, complaints = "", f"import torch takes more than {TORCH_S:g} s"
    if asked.returncode or not out:
        reason = (complaints.strip().splitlines() or ["no word"])[-1]
        yield missing("torch", reason, "Nothing trains; install the build of torch 2.13 for this machine.")
        return
    told = json.loads(out)
    build = f"CUDA {told['cuda']}" if told["cuda"] else f"ROCm {told['hip']}" if told["hip"] else "CPU"
    seen = _gpus_seen()
    if seen and not told["gpus"]:
        words = f"{told['version']} ({build}) reaches no GPU, and {len(seen)} are there"
        fix = "It trains on CPUs only; install torch's CUDA build, and a driver that is new enough for it."
        yield (missing if wanted.gpus else warning)("torch", words, fix)
    else:
        yield ok("torch", f"{told['version']} ({build}), gloo {told['gloo']}, nccl {told['nccl']}")
    yield from _gpu_lines(seen, told["gpus"], wanted)
    triton = _version("triton")
    if not told["gpus"]:
        yield ok("triton", f"{triton}; without a GPU the plain kernels are used")
    elif triton == "none":
        yield warning("triton", "none", "The plain kernels are used, which are slower; pip install -e '.[gpu]'.")
    else:
        yield ok("triton", triton)


def _gpus_seen() -> list[gpus.Gpu]:
    try:
        return gpus.query()
    except (OSError, RuntimeError, ValueError):
        return []


def _gpu_lines(seen: list[gpus.Gpu], usable: list[str], wanted: Wanted) -> Iterator[Line]:
    if not seen and not usable:
        if wanted.gpus and wanted.nodes <= 1:
            fix = f"cluster.gpus_per_node asks for {wanted.gpus}; on a login node that is no matter."
            yield warning("GPUs", "none", fix)
        else:
            yield ok("GPUs", "none; it trains on CPUs")
        return
    shown = f"{len(usable)} x {usable[0]}" if usable else f"{len(seen)} that torch does not reach"
    flaws = [words for _, words in gpus.defects(seen, 0)]
    if flaws:
        yield warning("GPUs", f"{shown}; {'; '.join(flaws)}", "Runs may be slow or fail; look at nvidia-smi.")
    else:
        driver = f", driver {seen[0]['driver_version']}" if seen else ""
        yield ok("GPUs", f"{shown}{driver}")
