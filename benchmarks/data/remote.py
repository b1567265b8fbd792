"""Section 4: blocks over HTTP and S3 with their checksums verified, beside the bare client."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.data.readers import Library
from benchmarks.data.runner import Contestant, Outcome, Runner
from benchmarks.data.servers import http_server, s3_server
from benchmarks.data.sizes import Sizes
from benchmarks.data.tables import Goal, Section, ratio

_LOCATION = "s3://bench/data"


def measure(runner: Runner, library: Library) -> Section:
    """Serve a dataset of ours on loopback and read it. Raises BenchError."""
    section = Section(key="remote", title="Remote", columns=("", "MB/s", "× bare client", "MB/CPU-s", "server"))
    data, sizes = library.ours(), library.sizes
    with http_server(data, runner.work, runner.environment(peer=False)) as (server, url):
        outcomes = runner.measure(_pair("http", "HTTP", "urllib3", url, data, sizes, {}))
    _add(section, "http", server, outcomes)
    python = _interpreter_of_moto(runner)
    if python is None or runner.versions["boto3"] is None:
        missing = "boto3" if runner.versions["boto3"] is None else "moto"
        section.outcomes["s3-ours"] = Outcome("ours over S3", problem=f"not installed ({missing})")
        section.add(section.outcomes["s3-ours"])
        section.goals.append(Goal.least("over S3 at least 0.80 of boto3", None, 0.8))
    else:
        with s3_server(python, runner.environment(peer=False)) as url:
            credentials = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
            credentials["AWS_DEFAULT_REGION"] = "us-east-1"
            runner.run("remote.upload", {"location": _LOCATION, "local": str(data)}, environment=credentials)
            outcomes = runner.measure(_pair("s3", "S3", "boto3", _LOCATION, data, sizes, credentials))
        _add(section, "s3", "moto", outcomes)
    section.remarks.append(
        f"All blocks of a dataset of {sizes.sequences * sizes.length * 2 / 1e6:.0f} MB in random order, by "
        f"{sizes.threads} threads; the bare client asks for the same ranges and checks nothing. "
        "CPU time is the reader's."
    )
    return section


def _pair(
    key: str, name: str, client: str, location: str, data: Path, sizes: Sizes, environment: Mapping[str, str]
) -> list[Contestant]:
    arguments = {"location": location, "threads": sizes.threads, "local": str(data)}
    return [
        Contestant(f"{key}-ours", f"ours over {name}, verified", "remote.ours", arguments, (), environment),
        Contestant(f"{key}-bare", f"{client}, bare", "remote.bare", arguments, (), environment),
    ]


def _add(section: Section, key: str, server: str, outcomes: dict[str, Outcome]) -> None:
    section.outcomes |= outcomes
    ours, bare = outcomes[f"{key}-ours"], outcomes[f"{key}-bare"]
    wall = {name: outcome.rate("bytes", "wall_s") for name, outcome in (("ours", ours), ("bare", bare))}
    for outcome in (ours, bare):
        rate, cpu = outcome.rate("bytes", "wall_s"), outcome.rate("bytes", "cpu_s")
        section.add(outcome, (rate or 0.0) / 1e6, ratio(rate, wall["bare"]), (cpu or 0.0) / 1e6, server)
    section.goals.append(
        Goal.least(f"over {key.upper()} at least 0.80 of the bare client", ratio(wall["ours"], wall["bare"]), 0.8)
    )


def _interpreter_of_moto(runner: Runner) -> str | None:
    if runner.versions["moto"] is not None:
        return sys.executable
    return str(runner.peers) if runner.peers is not None and not runner.missing(("moto",)) else None
