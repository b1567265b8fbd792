"""What the programs that do harm to runs on the test bed have in common."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.tables import Table
from pretrain.markdown import check_section, write_section
from tests.slurm import bed
from tests.slurm.faults import Scene

NOTICED = ("silent", "end", "head lost", "no place")
"""Events by which a supervisor or a deputy shows that it has noticed something."""


def left_out(node: str) -> Callable[[Scene], str]:
    """A check that no start has used the node; what is wrong, in words."""
    return lambda scene: f"{node} was used" if any(node in start["nodes"] for start in scene.starts) else ""


def program(
    about: str | None,
    section: str,
    name: str,
    drills: Sequence[Any],
    prepare: Callable[[Path], None],
    drill: Callable[[Any, Path], Any],
    result: type,
    table: Callable[[list[Any]], Table],
) -> None:
    """The command line: runs the drills that are missing, prints or writes the table, exits with 1 if one failed.

    Results are kept beside the runs, so that a second call goes on.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="drills whose name has this in it")
    parser.add_argument("--folder", type=Path, default=bed.SHARED / name)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if reason := bed.missing():
        sys.exit(f"error: {reason}.")
    if options.write is not None:
        check_section(options.write, section)
    prepare(options.folder)
    kept = options.folder / "results.jsonl"
    done = {}
    for values in map(json.loads, kept.read_text().splitlines() if kept.exists() else ()):
        done[values["name"]] = result(**{**values, "problems": tuple(values["problems"])})
    for one in drills:
        if (options.only and options.only not in one.name) or (one.name in done and not done[one.name].problems):
            continue
        done[one.name] = drill(one, options.folder)
        line = json.dumps(asdict(done[one.name]))
        with kept.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)
    results = [done[one.name] for one in drills if one.name in done]
    text = table(results).markdown()
    print(text)
    if options.write is not None:
        write_section(options.write, section, text)
    raise SystemExit(any(found.problems for found in results))
