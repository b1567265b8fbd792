"""Commands of this project in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError

ROOT = Path(__file__).resolve().parents[1]


def call(module: str, *arguments: str, environment: Mapping[str, str | None] | None = None) -> str:
    """What `python -m module arguments` prints. Raises BenchError with its last words if it fails.

    `environment` has variables that differ from this process's; None takes one away.
    """
    command = [sys.executable, "-m", module, *arguments]
    merged = {**os.environ, **(environment or {})}
    present = {name: value for name, value in merged.items() if value is not None}
    done = subprocess.run(command, cwd=ROOT, env=present, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or "no words").splitlines()[-1]
        raise BenchError(f"{module} {' '.join(arguments)} ended with exit code {done.returncode}: {words}")
    return done.stdout


def ask(module: str, *arguments: str, environment: Mapping[str, str | None] | None = None) -> dict[str, Any]:
    """The JSON object that it prints."""
    answer: dict[str, Any] = json.loads(call(module, *arguments, environment=environment))
    return answer


def options(values: Sequence[tuple[str, object]]) -> list[str]:
    """Pairs of an option and its value, as arguments."""
    return [text for option, value in values for text in (option, str(value))]
