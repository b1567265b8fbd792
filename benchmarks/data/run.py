"""The whole benchmark: sections in order, the report as values, and its place in a Markdown file."""

from __future__ import annotations

import datetime
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.data import memory, reading, remote, resuming, tokenization
from benchmarks.data.readers import Library
from benchmarks.data.runner import ROOT, Runner
from benchmarks.data.sizes import QUICK, Sizes
from benchmarks.data.tables import Section
from benchmarks.errors import BenchError
from benchmarks.machine import describe

SECTIONS = ("tokenization", "reading", "resume", "remote", "memory")


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        rounds: measurements of each contestant.
        only: sections, of :data:`SECTIONS`; none means all.
        peers: interpreter of the other projects' packages; None tries ``.venv-peers`` beside the packages.
        sources: of the text, as `pha data build` takes them.
        megabytes: of the text at most.
        sequences: of the token stream that is read, at least 1,024.
        quick: sizes that are done in under a minute, to see that everything works: two sections run at a time, so the
            figures say nothing.
        work: where the data is written; None takes a temporary directory.
    """

    rounds: int = 5
    only: Sequence[str] = ()
    peers: Path | None = None
    sources: Sequence[str] = ("installed-docs",)
    megabytes: float = 20.0
    sequences: int = 32_768
    quick: bool = False
    work: Path | None = None


@dataclass
class Report:
    """The sections with all that is needed to judge them."""

    date: str
    command: str
    rounds: int
    machine: dict[str, Any]
    versions: dict[str, str | None]
    peer_versions: dict[str, str | None]
    sections: list[Section] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        head = {name: value for name, value in vars(self).items() if name != "sections"}
        return {**head, "sections": {section.key: section.as_dict() for section in self.sections}}

    def markdown(self) -> str:
        """For a document."""
        machine = self.machine
        head = (
            f"Measured on {self.date} with `{self.command}`: medians of {self.rounds} round(s), in turn.\n\n"
            f"* Machine: {machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, "
            f"{machine['system']}; load average {machine['load_before']} before.\n"
            f"* Ours: {_named(self.versions)}.\n"
            f"* Peers: {_named(self.peer_versions)}.\n"
        )
        return "\n".join([head, *(section.markdown() for section in self.sections)])


def run(options: Options, say: Callable[[str], None]) -> Report:
    """Measure. Raises BenchError for an unknown section, an unusable interpreter, or one of ours that fails."""
    unknown = [name for name in options.only if name not in SECTIONS]
    if unknown:
        raise BenchError(f"there is no section {unknown[0]!r}: choose among {', '.join(SECTIONS)}.")
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pha-bench-", dir=options.work) as directory:
        runner = Runner(Path(directory), options.rounds, _peers(options), say)
        report = Report(
            date=datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d"),
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            rounds=options.rounds,
            machine=describe(),
            versions=runner.versions,
            peer_versions=runner.peer_versions,
        )
        report.sections = _sections(runner, options)
        return report


def _sections(runner: Runner, options: Options) -> list[Section]:
    sizes = QUICK if options.quick else Sizes(megabytes=options.megabytes, sequences=options.sequences)
    thorough = not options.quick or options.peers is not None
    wanted = options.only or SECTIONS
    tasks: list[Callable[[], list[Section]]] = []
    if "tokenization" in wanted:
        tasks.append(lambda: [tokenization.measure(runner, sizes, options.sources, thorough)])
    if set(wanted) - {"tokenization"}:
        library = Library(runner, sizes)
        library.ours()
        reads = [part for name, part in (("reading", reading), ("resume", resuming)) if name in wanted]
        others = [part for name, part in (("remote", remote), ("memory", memory)) if name in wanted]
        tasks.append(lambda: [part.measure(runner, library, thorough) for part in reads])
        tasks.append(lambda: [part.measure(runner, library) for part in others])
    with ThreadPoolExecutor(2 if options.quick else 1) as pool:
        return [section for sections in pool.map(lambda task: task(), tasks) for section in sections]


def _peers(options: Options) -> Path | None:
    if options.peers is not None:
        if not options.peers.is_file():
            raise BenchError(f"{options.peers} is no interpreter: make one with make bench-data, or leave --peers out.")
        return options.peers.absolute()
    usual = ROOT / ".venv-peers" / "bin" / "python"
    return usual if usual.is_file() and not options.quick else None


def _named(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version) or "none installed"
