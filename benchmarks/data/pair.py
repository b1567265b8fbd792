"""One contestant's work in two processes that begin together, measured from "go" until the last has ended."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.data.measure import Meter


@dataclass
class Job:
    """Work that is prepared but not begun: `run` does it and gives its tokens; `bytes` is its text in UTF-8."""

    run: Callable[[], int]
    bytes: int

    def measure(self) -> dict[str, Any]:
        """Do it in this process."""
        with Meter() as meter:
            tokens = self.run()
        return {"wall_s": meter.wall_s, "cpu_s": meter.cpu_s, "items": tokens, "bytes": self.bytes}


def share(documents: str, part: int = 0, parts: int = 1) -> list[str]:
    """Every `parts`-th text of a JSON file of texts, from the `part`-th on. Raises OSError."""
    texts: list[str] = json.loads(Path(documents).read_text(encoding="utf-8"))[part::parts]
    return texts


def measure(module: str, processes: int, **options: Any) -> dict[str, Any]:
    """Run `prepare` of a module of this package in so many processes, each on its share of the documents.

    CPU time is the processes' own over the work. Raises RuntimeError if one of them fails.
    """
    command = [sys.executable, "-m", "benchmarks.data.pair", module]
    started = [
        subprocess.Popen(
            [*command, json.dumps(options | {"part": part, "parts": processes})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for part in range(processes)
    ]
    for process in started:
        if _line(process) != "ready":
            raise RuntimeError(f"{module} did not become ready")
    with Meter() as meter:
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        results = [json.loads(_line(process)) for process in started]
    for process in started:
        process.communicate()
    summed = {key: sum(result[key] for result in results) for key in ("cpu_s", "items", "bytes")}
    return {"wall_s": meter.wall_s, **summed}


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def main() -> None:
    """A process of the pair: prepare, say so, wait for the word, work, report."""
    job: Job = importlib.import_module(f"benchmarks.data.{sys.argv[1]}").prepare(**json.loads(sys.argv[2]))
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(job.measure()), flush=True)


if __name__ == "__main__":
    main()
