"""The program that looks at one node: `python -m cluster.node_probe JSON`. The standard library only, no torch.

It prints one line of JSON a check, as soon as that is done: of a node that hangs in its file system one then knows
where. A line is shorter than what Slurm passes on in one piece.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import platform
import random
import signal
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster import gpus

HELLO, RANK, END = "hello", "rank", "end"
LINE_BYTES = 1000
"""slurmstepd passes on 1,024 at once; longer lines of several nodes would be mixed."""
PACKAGES = ("torch", "deepspeed", "numpy", "triton")
SHARDS_SEEN = 6
_PROBE_BYTES = 1 << 16
_SIOCGIFADDR = 0x8915
_UNLIMITED = 1 << 60
"""The kernel writes "no limit" as a number above this."""

Answer = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What a node is asked."""

    run: str
    """The run's folder."""
    data: list[str] = field(default_factory=list)
    """Local directories of datasets."""
    interface: str | None = None
    gpus: int = 0
    end: dict[str, list[list[int]]] = field(default_factory=dict)
    """Node → (process, its start time) of ranks that are to be killed; then nothing is asked."""

    def text(self) -> str:
        """As an argument of the program."""
        return json.dumps(asdict(self))


def node_name() -> str:
    """As Slurm knows this node, else its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def free_memory(root: Path = Path("/")) -> Answer:
    """Bytes that a new process can have: the machine's MemAvailable, and what the control groups leave."""
    lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    told = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines) if rest}
    left = _group_memory(root)
    free = min([told["MemAvailable"], *([left] if left is not None else [])])
    return {"free": free, "total": told["MemTotal"], "group": left}


def _group_memory(root: Path) -> int | None:
    """What the tightest control group above this process leaves, its caches counted as free; None without a limit."""
    left = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, names, path = line.split(":", 2)
            if names == "":
                top, limit, used, cache = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
            elif "memory" in names.split(","):
                top, limit, used = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
                cache = "total_inactive_file"
            else:
                continue
            folder = root / top / path.lstrip("/")
            for level in (folder, *folder.parents):
                with contextlib.suppress(OSError, ValueError):
                    most = int((level / limit).read_text(encoding="ascii"))
                    if most < _UNLIMITED:
                        left.append(most - int((level / used).read_text(encoding="ascii")) + _stat(level, cache))
                if level == root / top:
                    break
    return min(left) if left else None


def _stat(group: Path, name: str) -> int:
    lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


def room(path: Path) -> Answer:
    """Free bytes and inodes of a file system (None where it does not count them)."""
    seen = os.statvfs(path)
    return {"free": seen.f_bavail * seen.f_frsize, "inodes": seen.f_favail if seen.f_files else None}


def write_and_read(folder: Path, size: int = _PROBE_BYTES) -> Answer:
    """Writes a file, makes it durable, renames it, and reads it back by its new name. Raises OSError.

    The pages are given up before they are read, so that the bytes come from where they were written to.
    """
    began = time.perf_counter()
    content = random.Random(time.time_ns()).randbytes(size)
    first = folder / f".probe-{node_name()}-{os.getpid()}.new"
    second = first.with_suffix(".read")
    try:
        with first.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(OSError):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        first.rename(second)
        if second.read_bytes() != content:
            raise OSError(f"what was written in {folder} is not what is read there")
    finally:
        first.unlink(missing_ok=True)
        second.unlink(missing_ok=True)
    return {"write_s": round(time.perf_counter() - began, 4)}


def rank_of(command: list[str]) -> str | None:
    """The config of a rank of training with this command line; None for any other process."""
    for first, *rest in (command[i : i + 4] for i in range(len(command))):
        if first == "-m" and rest[:2] == ["pretrain.cli", "train"]:
            return rest[2] if len(rest) > 2 else ""
    return None


def ranks_here(root: Path = Path("/")) -> list[Answer]:
    """This user's ranks of training on this node: process, start time, job (None: of no job) and config."""
    found = []
    for folder in (root / "proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            if folder.stat().st_uid != os.getuid():
                continue
            config, began = rank_of(_words(folder / "cmdline")), _start_time(folder)
            if config is None or began is None:
                continue
            variables = dict(word.partition("=")[::2] for word in _words(folder / "environ"))
            job = variables.get("SLURM_JOB_ID")
            found.append({"pid": int(folder.name), "began": began, "job": job, "config": config[-400:]})
    return found


def _words(path: Path) -> list[str]:
    return path.read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")


def _start_time(folder: Path) -> int | None:
    """In the kernel's ticks; None for a process that is dead but not buried."""
    fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def end_ranks(marked: list[list[int]]) -> Answer:
    """Kills the processes that still are the ones that were seen; says which are gone after two seconds at most."""
    left = [pid for pid, began in marked if _is(pid, began)]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    over = time.monotonic() + 2.0
    while (left := [pid for pid, began in marked if _is(pid, began)]) and time.monotonic() < over:
        time.sleep(0.02)
    return {"ended": [pid for pid, _ in marked if pid not in left], "left": left}


def _is(pid: int, began: int) -> bool:
    try:
        folder = Path(f"/proc/{pid}")
        return _start_time(folder) == began and rank_of(_words(folder / "cmdline")) is not None
    except (OSError, ValueError, IndexError):
        return False


def versions() -> Answer:
    """Of Python, the kernel and the packages that training stands on, without importing those."""
    from importlib import metadata

    found = {"python": platform.python_version(), "kernel": platform.release()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def dataset(directory: Path) -> Answer:
    """Reads the index, and compares the sizes of a few shards with it. Raises OSError or ValueError."""
    index = json.loads((directory / "index.json").read_text(encoding="utf-8"))
    shards = [(shard["name"], shard["bytes"]) for split in index["splits"].values() for shard in split["shards"]]
    # The first, the last, and some that are others on each node.
    chosen = random.Random(zlib.crc32(node_name().encode())).sample(shards, min(SHARDS_SEEN, len(shards)))
    for name, size in {*chosen, shards[0], shards[-1]}:
        seen = (directory / name).stat().st_size
        if seen != size:
            raise ValueError(f"{directory / name} has {seen} bytes, and its index says {size}")
    return {"place": str(directory)[-200:], "hash": str(index["hash"])[:12], "shards": len(shards)}


def interface(name: str | None) -> Answer:
    """The address that ranks would meet at, and of a named interface its state and speed. Raises OSError."""
    if name is None:
        return {"address": socket.gethostbyname(socket.gethostname())}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        packed = fcntl.ioctl(asked.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    found: Answer = {"address": socket.inet_ntoa(packed[20:24])}
    for key in ("operstate", "mtu", "speed"):
        with contextlib.suppress(OSError):  # a bridge, or a cable that is out, has no speed
            found[key] = Path(f"/sys/class/net/{name}/{key}").read_text(encoding="ascii").strip()
    return found


def gpu_report(wanted: int) -> Answer:
    """Defects of the GPUs, their driver and kinds. Raises OSError or RuntimeError without an answer."""
    seen = gpus.query()
    kinds = sorted({str(gpu["name"]) for gpu in seen})
    return {
        "count": len(seen),
        "kinds": kinds,
        "driver": seen[0]["driver_version"] if seen else None,
        "hottest": max((gpu["temperature.gpu"] or 0.0 for gpu in seen), default=None),
        "defects": gpus.defects(seen, wanted)[:6],
    }


def checks(question: Question) -> list[tuple[str, Callable[[], Answer]]]:
    """What is looked at, by name, in order: what may hang for ever comes last."""
    temporary, shared, run = Path(os.environ.get("TMPDIR", "/tmp")), Path("/dev/shm"), Path(question.run)
    found: list[tuple[str, Callable[[], Answer]]] = [
        ("memory", free_memory),
        ("interface", lambda: interface(question.interface)),
        ("ranks", _tell_ranks),
        ("versions", versions),
        ("tmp", lambda: room(temporary) | write_and_read(temporary, 4096)),
        ("shm", lambda: room(shared) | write_and_read(shared, 4096)),
    ]
    if question.gpus:
        found.append(("gpus", lambda: gpu_report(question.gpus)))
    found.append(("run", lambda: room(run) | write_and_read(run)))
    found += [("data", functools.partial(dataset, Path(directory))) for directory in question.data]
    return found


def _tell_ranks() -> Answer:
    seen = ranks_here()
    for one in seen:
        say(RANK, **one)
    return {"count": len(seen)}


def say(check: str, **values: Any) -> None:
    """Prints a line; one that is too long says only that."""
    line = {"host": node_name(), "time": time.time(), "check": check, **values}
    text = json.dumps(line)
    if len(text) > LINE_BYTES:
        short = {key: str(value)[:100] if isinstance(value, list | dict) else value for key, value in line.items()}
        short["error"] = f"an answer of {len(text)} bytes: {str(values.get('error', ''))[:300]}"
        text = json.dumps(short)
    print(text, flush=True)


def main() -> None:
    """Answers the question in the first argument."""
    question = Question(**json.loads(sys.argv[1]))
    say(HELLO)
    if question.end:
        say("ended", **end_ranks(question.end.get(node_name(), [])))
        say(END)
        return
    for name, check in checks(question):
        began = time.perf_counter()
        try:
            values = check()
        except Exception as error:  # whatever it is: it is what there is to be said of this node
            say(name, error=f"{type(error).__name__}: {error}"[:400], seconds=round(time.perf_counter() - began, 3))
            continue
        say(name, **values, seconds=round(time.perf_counter() - began, 3))
    say(END)


if __name__ == "__main__":
    main()
