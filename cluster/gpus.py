"""What `nvidia-smi` says of a node's GPUs, and what of it is a defect."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

FIELDS = (
    "index",
    "name",
    "driver_version",
    "ecc.errors.uncorrected.volatile.total",
    "temperature.gpu",
    "clocks.sm",
    "clocks.max.sm",
    "clocks_event_reasons.active",
    "power.draw",
    "power.limit",
    "memory.used",
    "memory.total",
)
"""As `--query-gpu` names them. Drivers before 535 know the reasons as `clocks_throttle_reasons.active`."""
_OLD_NAMES = {"clocks_event_reasons.active": "clocks_throttle_reasons.active"}
_TIMEOUT_S = 15.0
_SLOWED = {0x08: "hardware slowdown", 0x20: "too hot (software)", 0x40: "too hot (hardware)", 0x80: "power brake"}
"""Bits of the active reasons that are a defect on an idle GPU; idle, set clocks and a power cap are none."""
HOT_C = 85.0
"""An idle GPU above this is not cooled."""
OWN_MB = 1024.0
"""A driver and its daemons hold so much of an idle GPU's memory."""

Gpu = dict[str, Any]


def parse(text: str) -> list[Gpu]:
    """The GPUs of `--query-gpu=FIELDS --format=csv,noheader,nounits`; what a GPU does not tell (`[N/A]`) is None.

    Raises ValueError where a line is no answer to that question.
    """
    found = []
    for row in csv.reader(io.StringIO(text), skipinitialspace=True):
        if not row:
            continue
        if len(row) != len(FIELDS):
            raise ValueError(f"nvidia-smi answers {','.join(row)!r}, which is not one value for each of its fields")
        found.append({name: _value(name, cell.strip()) for name, cell in zip(FIELDS, row, strict=True)})
    return found


def _value(name: str, cell: str) -> Any:
    if name in ("name", "driver_version"):
        return cell
    if cell.startswith("[") or cell in ("", "N/A"):
        return None
    return int(cell, 16) if cell.startswith("0x") else float(cell)


def query(run: Callable[[list[str]], str] | None = None) -> list[Gpu]:
    """Asks the driver. Raises OSError or RuntimeError where it cannot be asked, with its own words."""
    ask = run or _run
    for names in (FIELDS, tuple(_OLD_NAMES.get(name, name) for name in FIELDS)):
        text = ask(["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"])
        if "is not a valid field" not in text:
            return parse(text)
    raise RuntimeError(f"nvidia-smi does not know what it is asked for ({' '.join(text.split())[:200]})")


def _run(arguments: list[str]) -> str:
    if shutil.which(arguments[0]) is None:
        raise FileNotFoundError(f"{arguments[0]} is not installed")
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{arguments[0]} has not answered for {_TIMEOUT_S:g} s") from None
    said = f"{done.stdout}\n{done.stderr}"
    if done.returncode and "is not a valid field" not in said:
        raise RuntimeError(f"{arguments[0]} ends with {done.returncode}: {' '.join(said.split())[:200]}")
    return said if done.returncode else done.stdout


def defects(gpus: list[Gpu], wanted: int) -> list[tuple[bool, str]]:
    """(whether a run cannot use the node, words) for each defect of idle GPUs of which `wanted` must be there."""
    found = []
    if len(gpus) < wanted:
        found.append((True, f"{len(gpus)} of {wanted} GPUs are there"))
    for gpu in gpus:
        name = f"GPU {gpu['index']:g}"
        if (errors := gpu["ecc.errors.uncorrected.volatile.total"]) is not None and errors > 0:
            found.append((True, f"{name} has {errors:g} uncorrected memory errors"))
        if (used := gpu["memory.used"]) is not None and used > OWN_MB:
            found.append((True, f"{name} has {used:g} MiB in use before the run begins"))
        reasons = [words for bit, words in _SLOWED.items() if int(gpu["clocks_event_reasons.active"] or 0) & bit]
        if reasons:
            found.append((False, f"{name} is slowed down: {', '.join(reasons)}"))
        if (heat := gpu["temperature.gpu"]) is not None and heat > HOT_C:
            found.append((False, f"{name} is at {heat:g} °C while idle"))
    return found
