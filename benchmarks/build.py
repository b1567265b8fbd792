"""Builds one corpus again and again and holds the results together: time, memory, and the same bytes each time.

    python benchmarks/build.py CONFIG [--kills 20] [--seed 0] [--work DIR] [--write docs/data.md] [--json]

CONFIG is a build's .yaml; its `output` is left alone. The dataset is built with one worker, with two, and by builds
that are killed with SIGKILL (the whole group of processes) at random moments and started again with a random number
of workers, until one ends by itself. The SHA-256 of every file of the three datasets must be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from pretrain.markdown import check_section, write_section

#: A stage's last line in a build's log.
_STAGE = re.compile(r"^(.+): [\d,]+ documents, [\d.,]+ MB in ([\d.,]+) s", re.MULTILINE)


def command(config: Path, workers: int) -> list[str]:
    """The build as a user starts it."""
    return [sys.executable, "-m", "pretrain.cli", "data", "build", str(config), "--workers", str(workers)]


def with_output(config: Path, output: Path) -> Path:
    """A copy of the config that builds into `output`."""
    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    tree["output"] = str(output)
    copy = output.with_suffix(".yaml")
    copy.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return copy


def hashes(dataset: Path) -> dict[str, str]:
    """SHA-256 of every file of a dataset, by its name."""
    files = sorted(path for path in dataset.rglob("*") if path.is_file())
    return {str(path.relative_to(dataset)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def build(config: Path, workers: int) -> dict[str, Any]:
    """One undisturbed build: wall and CPU seconds of all its processes, their peak memory together in MiB, and the
    wall seconds of its stages."""
    before, started, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0.0
    log = config.with_suffix(".log")
    with log.open("w") as lines:
        process = subprocess.Popen(command(config, workers), stdout=subprocess.DEVNULL, stderr=lines)
        while process.poll() is None:
            peak = max(peak, _resident(process.pid))
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"the build of {config} ended with code {process.returncode}: {log.read_text()}")
    stages = {name: float(took.replace(",", "")) for name, took in _STAGE.findall(log.read_text(encoding="utf-8"))}
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": time.perf_counter() - started, "cpu_s": cpu, "peak_mib": peak, "stages_s": stages}


def _resident(pid: int) -> float:
    """MiB of a process and its children; what they share counts for each."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0.0
    return total / 2**20


def build_killed(config: Path, kills: int, longest: float, seed: int) -> dict[str, float]:
    """Kill the build up to `kills` times, each after at most `longest` seconds, and then let it end."""
    draw, done = random.Random(seed), 0
    started = time.perf_counter()
    for number in range(kills + 1):
        workers = draw.choice([1, 2, 3])
        process = subprocess.Popen(command(config, workers), stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            process.wait(None if number == kills else draw.uniform(0.5, longest))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            done += 1
        if process.wait() == 0:
            break
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"the killed build of {config} ended with code {process.returncode}.")
    return {"wall_s": time.perf_counter() - started, "kills": done}


def measure(config: Path, work: Path, kills: int, seed: int) -> dict[str, Any]:
    """Build three times and compare. Raises SystemExit if a build fails or the datasets differ."""
    found: dict[str, Any] = {}
    expected: dict[str, str] = {}
    for name in ("1 worker", "2 workers", "killed"):
        output = work / name.replace(" ", "-")
        copy = with_output(config, output)
        if name == "killed":  # often enough to be killed in every stage
            found[name] = build_killed(copy, kills, 2 * found["1 worker"]["wall_s"] / kills, seed)
        else:
            found[name] = build(copy, int(name[0]))
        current = hashes(output)
        expected = expected or current
        different = [file for file in expected.keys() | current.keys() if expected.get(file) != current.get(file)]
        if "build.json" in different:
            raise SystemExit(
                f"the sources of {config} changed while they were built; leave them alone and start again."
            )
        if different:
            raise SystemExit(f"the build {name!r} differs from the first in {', '.join(sorted(different))}.")
        found[name]["files"] = len(current)
        if name != "1 worker":
            shutil.rmtree(output)
    return found


def table(found: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    names = ("wall_s", "cpu_s", "peak_mib", "kills", "files")
    lines = [
        "| build | wall, s | CPU, s | peak memory, MiB | kills | files, all equal |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for build_name, row in found.items():
        cells = (f"{row[name]:,.0f}" if name in row else "" for name in names)
        lines.append(f"| {build_name} | {' | '.join(cells)} |")
    one, two = found["1 worker"], found["2 workers"]
    lines += ["", "| stage | 1 worker, s | 2 workers, s | ratio |", "|---|---:|---:|---:|"]
    for stage, took in {**one["stages_s"], "all": one["wall_s"]}.items():
        other = two["wall_s"] if stage == "all" else two["stages_s"].get(stage)
        compared = "– | –" if not other else f"{other:,.1f} | {took / other:.2f}"
        lines.append(f"| {stage} | {took:,.1f} | {compared} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where the datasets are built; the first is kept only if given")
    parser.add_argument("--write", type=Path, help="put the table between the markers of this Markdown file")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.write:
        check_section(options.write, "benchmarks/build.py")
    with tempfile.TemporaryDirectory(prefix="pha-build-", dir=options.work) as folder:
        work = options.work or Path(folder)
        found = measure(options.config, work, options.kills, options.seed)
    print(json.dumps(found, indent=1) if options.json else table(found), flush=True)
    if options.write:
        write_section(options.write, "benchmarks/build.py", table(found))


if __name__ == "__main__":
    main()
