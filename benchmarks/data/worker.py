"""One measurement in a process of its own: ``python -m benchmarks.data.worker NAME JSON-ARGS``.

Prints one line of JSON: ``wall_s`` and ``cpu_s`` of the measured part, ``items`` and ``bytes`` that it handled, and
what else the contestant reports (checks, states). Runs under our interpreter or under the peers', so it imports only
what NAME needs.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
from typing import Any

#: What can be run → the module and the function of keyword arguments that does it.
CONTESTANTS = {
    "probe": "benchmarks.data.worker:probe",
    "tokenize.build": "benchmarks.data.ours_tokenize:measure_build",
    "tokenize.compare": "benchmarks.data.ours_tokenize:compare",
    "tokenize.text": "benchmarks.data.ours_tokenize:collect",
    "tokenize.train": "benchmarks.data.ours_tokenize:train",
    "tokenize.pair": "benchmarks.data.pair:measure",
    "tokenize.datasets": "benchmarks.data.peer_tokenize:measure_datasets",
    "tokenize.train-fast": "benchmarks.data.peer_tokenize:train_fast",
    "write.ours": "benchmarks.data.ours_reading:write",
    "write.stream": "benchmarks.data.stream:write",
    "write.webdataset": "benchmarks.data.peer_webdataset:write",
    "write.mosaic": "benchmarks.data.peer_mosaic:write",
    "write.litdata": "benchmarks.data.peer_litdata:write",
    "write.datasets": "benchmarks.data.peer_datasets:write",
    "read.ours": "benchmarks.data.ours_reading:read",
    "read.memmap": "benchmarks.data.peer_memmap:read",
    "read.webdataset": "benchmarks.data.peer_webdataset:read",
    "read.mosaic": "benchmarks.data.peer_mosaic:read",
    "read.litdata": "benchmarks.data.peer_litdata:read",
    "read.datasets": "benchmarks.data.peer_datasets:read",
    "remote.ours": "benchmarks.data.ours_remote:measure",
    "remote.bare": "benchmarks.data.ours_remote:measure_bare",
    "remote.upload": "benchmarks.data.ours_remote:upload",
    "memory.ours": "benchmarks.data.ours_memory:measure",
}


def main() -> None:
    """Run the contestant that the command line names."""
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    answers = os.dup(1)
    os.dup2(2, 1)  # libraries print what they like; only the result goes to standard output
    module, function = CONTESTANTS[name].split(":")
    result = getattr(importlib.import_module(module), function)(**arguments)
    with os.fdopen(answers, "w") as out:
        out.write(json.dumps(result) + "\n")


def probe(distributions: list[str]) -> dict[str, Any]:
    """The installed versions of these distributions (null where there is none) and of Python."""
    versions: dict[str, Any] = {"python": sys.version.split()[0]}
    for name in distributions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


if __name__ == "__main__":
    main()
