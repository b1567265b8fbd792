"""Runs measurements in processes of their own, contestants in turn, round by round."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError

ROOT = Path(__file__).resolve().parents[2]
STUBS = Path(__file__).resolve().parent / "stubs"
#: Distributions whose versions are told, under either interpreter.
OURS = ("numpy", "torch", "sentencepiece", "webdataset", "urllib3", "boto3", "moto")
PEERS = (
    *("numpy", "torch", "sentencepiece", "tokenizers", "datasets", "pyarrow", "mosaicml-streaming", "litdata", "moto"),
)
_TIMEOUT_S = 3600


@dataclass(frozen=True)
class Contestant:
    """One row of a table.

    Attributes:
        key: its name in JSON.
        label: its name in the table.
        worker: what it runs, of :data:`benchmarks.data.worker.CONTESTANTS`.
        arguments: of that.
        needs: distributions of the peers' interpreter; none means that it runs under ours.
        environment: variables that its process gets beside the others.
    """

    key: str
    label: str
    worker: str
    arguments: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """What became of a contestant: its results by round, or why there are none."""

    label: str
    results: list[dict[str, Any]] = field(default_factory=list)
    problem: str | None = None

    def median(self, value: Callable[[dict[str, Any]], float]) -> float | None:
        """The median over the rounds, or None where nothing was measured."""
        return statistics.median(map(value, self.results)) if self.results and not self.problem else None

    def rate(self, what: str, per: str) -> float | None:
        """The median over the rounds of a ratio of two fields."""
        return self.median(lambda result: result[what] / max(result[per], 1e-9))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"label": self.label, "problem": self.problem, "rounds": self.results}


class Runner:
    """Starts workers.

    Args:
        work: a directory for everything that is written.
        rounds: how often each contestant is measured.
        peers: the interpreter of the peers' packages; None reports them as not installed.
        say: is told what is going on.

    Attributes:
        versions, peer_versions: of the distributions of :data:`OURS` and :data:`PEERS`, None where there is none.

    Raises:
        BenchError: `peers` cannot be run.
    """

    def __init__(self, work: Path, rounds: int, peers: Path | None, say: Callable[[str], None]) -> None:
        self.work, self.rounds, self.peers, self._say = work, rounds, peers, say
        self.versions = self.run("probe", {"distributions": OURS})
        self.peer_versions: dict[str, Any] = dict.fromkeys(PEERS)
        if peers is not None:
            self.peer_versions = self.run("probe", {"distributions": PEERS}, peer=True)

    def missing(self, needs: Sequence[str]) -> list[str]:
        """Those of the peers' distributions that are not installed."""
        return [name for name in needs if self.peer_versions.get(name) is None]

    def run(
        self,
        worker: str,
        arguments: Mapping[str, Any],
        peer: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """One worker's result. Raises BenchError with its last words if it fails."""
        python = self.peers if peer and self.peers is not None else Path(sys.executable)
        command = [str(python), "-m", "benchmarks.data.worker", worker, json.dumps(arguments)]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=self.environment(peer) | dict(environment or {}),
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
            )
        except OSError as error:
            raise BenchError(f"{python} cannot be run ({error.strerror}): give an interpreter as --peers.") from error
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{worker} was not done after {_TIMEOUT_S} s: choose a smaller size.") from error
        if done.returncode or not done.stdout.strip():
            words = [line for line in done.stderr.splitlines() if line.strip()] or [f"code {done.returncode}"]
            if worker == "probe":
                raise BenchError(f"{python} is no Python ({words[-1].strip()}): give an interpreter as --peers.")
            raise BenchError(f"{worker} failed under {python} ({words[-1].strip()}): run it by hand to see why.")
        try:
            result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        except ValueError as error:
            raise BenchError(f"{python} does not answer as Python does: give an interpreter as --peers.") from error
        return result

    def environment(self, peer: bool) -> dict[str, str]:
        """Of a worker: one thread in each library's own pool, no network, and nothing written outside `work`."""
        path = [str(ROOT), *([str(STUBS)] if peer else []), *filter(None, [os.environ.get("PYTHONPATH")])]
        # our package closes webdataset's unsafe doors for its process; the plain library is measured as it comes
        inherited = {name: value for name, value in os.environ.items() if name != "WDS_SECURE"}
        return {
            **inherited,
            "PYTHONPATH": os.pathsep.join(path),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(self.work / "hf"),
            "DATA_OPTIMIZER_CACHE_FOLDER": str(self.work / "litdata"),
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def attempt(self, contestant: Contestant, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One measurement of a contestant. Raises BenchError."""
        return self.run(
            contestant.worker,
            {**contestant.arguments, **(arguments or {})},
            bool(contestant.needs),
            contestant.environment,
        )

    def measure(self, contestants: Sequence[Contestant]) -> dict[str, Outcome]:
        """Every contestant once a round, each round beginning with another one.

        A peer that is not installed or fails is reported with the reason. Raises BenchError if one of ours fails.
        """
        outcomes = {contestant.key: Outcome(contestant.label) for contestant in contestants}
        for contestant in contestants:
            if missing := self.missing(contestant.needs):
                outcomes[contestant.key].problem = f"not installed ({', '.join(missing)})"
        for number in range(self.rounds):
            turn = number % max(1, len(contestants))
            for contestant in (*contestants[turn:], *contestants[:turn]):
                outcome = outcomes[contestant.key]
                if outcome.problem is None:
                    self._say(f"round {number + 1} of {self.rounds}: {contestant.label}")
                    try:
                        outcome.results.append(self.attempt(contestant))
                    except BenchError as error:
                        if not contestant.needs:
                            raise
                        outcome.problem = str(error)
        return outcomes

    def say(self, text: str) -> None:
        """Tell what is going on."""
        self._say(text)
