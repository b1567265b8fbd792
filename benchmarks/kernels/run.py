"""Everything about kernels that needs no GPU: bytes, counted, and resources, compiled for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from benchmarks.errors import BenchError
from benchmarks.kernels.report import Report
from benchmarks.process import ask


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        presets: whose shapes.
        aot: compile for all targets.
        traffic: count bytes.
        targets: GPUs to compile for; all if empty.
        tokens: of the inputs whose bytes are counted.
    """

    presets: Sequence[str] = ("pha-125m", "pha-180m")
    aot: bool = True
    traffic: bool = True
    targets: Sequence[str] = ()
    tokens: int = 512


def run(options: Options, say: Callable[[str], None]) -> Report:
    """Measure. Raises BenchError where triton is not installed."""
    try:
        report = Report(triton=version("triton"))
    except PackageNotFoundError as error:
        raise BenchError("pha bench kernels needs the package triton; install the extra [gpu].") from error
    if options.traffic:
        for preset in options.presets:
            say(f"counting bytes at the shapes of {preset}")
            arguments = (preset, "--tokens", str(options.tokens))
            found = ask("benchmarks.kernels.traffic", *arguments, environment={"TRITON_INTERPRET": "1"})
            report.traffic[preset] = found["cases"]
    if options.aot:
        say("compiling")
        targets = [word for target in options.targets for word in ("--target", target)]
        found = ask("benchmarks.kernels.resources", *options.presets, *targets, environment={"TRITON_INTERPRET": None})
        report.resources = found["kernels"]
    return report
