"""The whole benchmark: trains and measures each contestant in turn, and puts together the tables."""

from __future__ import annotations

import datetime
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.architectures.contestants import DEFAULT, Contestant
from benchmarks.architectures.report import Measured, Report
from benchmarks.architectures.training import train
from benchmarks.errors import BenchError
from benchmarks.machine import describe
from benchmarks.process import ask, call
from model.flops import flops_per_token
from model.params import count_parameters
from pretrain.rundir import RunDirectory

#: The recall probe's learning rate, and its changes to all models: states too small for a row, and a budget that has
#: room for the queries.
RATE = 3e-3
RECALL = ("model.ssd.state=4", "model.mehta.state=8", "model.taipan.budget=0.3", "model.taipan.noise_steps=300")
#: Steps of a run that is for speed alone.
SPEED_STEPS = 6


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        models: presets and variants (see `Contestant`).
        data: the dataset that is trained on; if it is not there, it is built of the installed documentation.
        lengths: tokens a sequence; the first is the one that the quality columns come from.
        tokens: of a step; all lengths divide it.
        steps: of the first length's run; None is the protocol's.
        new: tokens that are decoded after each length.
        recall_steps: of the recall probe, at most; 0 leaves it out.
        work: where the runs are kept; None takes a temporary directory.
    """

    models: Sequence[str] = DEFAULT
    data: Path = Path("data/demo")
    lengths: Sequence[int] = (512, 2048, 8192)
    tokens: int = 8192
    steps: int | None = None
    new: int = 64
    recall_steps: int = 600
    work: Path | None = None


def run(options: Options, say: Callable[[str], None]) -> Report:
    """Train and measure everything. Raises BenchError for lengths that do not divide the tokens of a step."""
    uneven = [length for length in options.lengths if options.tokens % length]
    if uneven:
        raise BenchError(f"a length of {uneven[0]} does not divide a step of {options.tokens} tokens: change one.")
    if not (options.data / "index.json").is_file():
        say(f"building {options.data}")
        call("pretrain.cli", "data", "build", str(options.data), "installed-docs", "--vocab", "4096")
    report = Report(
        *(options.lengths, options.tokens, options.new, _recall(options)),
        date=datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d"),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        machine=describe(),
    )
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pha-bench-", dir=options.work) as directory:
        for name in options.models:
            report.models.append(_measure(Contestant(name), options, Path(directory), say))
    if options.recall_steps:
        say("recall")
        with ThreadPoolExecutor(2) as pool:  # what is counted here is not time
            found = pool.map(lambda name: _probe(Contestant(name), options), options.models)
            for measured, recall in zip(report.models, found, strict=True):
                measured.recall = recall
    return report


def _probe(contestant: Contestant, options: Options) -> dict[str, Any]:
    """The recall probe's score."""
    sizes = ("--steps", str(options.recall_steps), "--rate", str(RATE), "--threads", "1")
    found = ask("pretrain.cli", "probe", contestant.probe, *RECALL, "--task", "mqar", *sizes, "--json")
    score: dict[str, Any] = found["scores"][0]
    return score


def _recall(options: Options) -> str:
    return (
        f"accuracy of `pha probe` (8 pairs, 32 tokens, width 64, 2 layers, one seed, rate {RATE:g}, "
        f"{', '.join(f'`{word}`' for word in RECALL)}) after at most "
        f"{options.recall_steps:,} steps; a guess among the row's values has 0.125."
    )


def _measure(contestant: Contestant, options: Options, work: Path, say: Callable[[str], None]) -> Measured:
    trainings, decodings = [], []
    for index, length in enumerate(options.lengths):
        steps, sequences = (options.steps, None) if index == 0 else (SPEED_STEPS, 1)
        training = train(contestant, options.data, work, length, options.tokens, steps, sequences)
        new = ("--new", str(options.new))
        decoding = ask("benchmarks.architectures.decoding", str(training.run), str(length), *new)
        say(
            f"{contestant.name}, {length} tokens: training {training.tokens_per_s:,.0f} tokens/s, "
            f"decoding {decoding['decode_tokens_per_s']:,.0f}"
        )
        trainings.append(training)
        decodings.append(decoding)
    config = RunDirectory(trainings[0].run).read_config().model
    measured = Measured(
        contestant.name,
        parameters=count_parameters(config)["total"],
        flops_per_token=flops_per_token(config, options.lengths[0])["total"],
        trainings=trainings,
        decodings=decodings,
        exactness=ask("benchmarks.architectures.exactness", str(trainings[0].run)),
    )
    say(f"{contestant.name}: logits' error {measured.exactness['logits']:.1e}")
    return measured
