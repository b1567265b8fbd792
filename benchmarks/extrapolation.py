"""How models that were trained on short sequences read long ones: loss by position, far beyond the training length.

    python benchmarks/extrapolation.py [MODEL ...] [--train-length 256] [--steps 400] [--tokens 16384]
        [--data data/demo] [--work DIR] [--plot docs/extrapolation.png] [--write docs/architectures.md] [--json]

Each model (`PRESET` or `PRESET:key=value,...`) is trained by `pha train configs/compare.yaml`, with data.seq_len and
train.steps changed and nothing else, and then reads the beginnings of the validation and test splits by
`pha eval --stream`, each as one text whose state goes on across its documents. All models read the same texts, so that
what differs between their curves is not the text.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.architectures.contestants import Contestant
from benchmarks.architectures.training import train
from benchmarks.process import ask
from benchmarks.tables import Table
from pretrain.markdown import check_section, write_section

SECTION = "benchmarks/extrapolation.py"
MODELS = (
    *("pha-tiny", "pha-tiny:gss.kind=ssd", "pha-tiny:attention.window=256", "transformer-tiny", "gss-tiny"),
    *("h3-tiny", "hedgehog-tiny", "mamba2-tiny", "taipan-tiny"),
)
#: Tokens of a training step.
TOKENS = 1024


def measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train, read, and add up the bins of both splits. Raises BenchError if a command fails."""
    contestant, data = Contestant(model), options.data.absolute()
    training = train(contestant, data, options.work, options.train_length, TOKENS, options.steps, None)
    bins: dict[int, dict[str, Any]] = {}
    for split in ("validation", "test"):
        reads = ("--split", split, "--tokens", str(options.tokens), "--json")
        for entry in ask("pretrain.cli", "eval", str(training.run), "--stream", *reads)["bins"]:
            total = bins.setdefault(entry["first"], {"last": entry["last"], "tokens": 0, "nats": 0.0})
            total["tokens"] += entry["tokens"]
            total["nats"] += entry["nats"]
    print(f"{model}: validation {training.validation:.3f} nats at {options.train_length}", file=sys.stderr, flush=True)
    return {
        "model": model,
        "validation": training.validation,
        "bins": [{"first": first, **found, "loss": found["nats"] / found["tokens"]} for first, found in bins.items()],
    }


def table(found: Sequence[dict[str, Any]], options: argparse.Namespace) -> Table:
    """Losses by octave, from 16 tokens on."""
    shown = [entry for entry in found[0]["bins"] if entry["first"] >= 16]
    columns = ("model", *(f"{entry['first']:,}–{entry['last']:,}" for entry in shown))
    result = Table("Loss by position [nats per token]", columns)
    for one in found:
        result.rows.append([one["model"], *(f"{b['loss']:.3f}" for b in one["bins"] if b["first"] >= 16)])
    result.rows.append(["predicted tokens", *(f"{entry['tokens']:,}" for entry in shown)])
    result.remarks.append(
        f"Trained at {options.train_length} tokens for {options.steps} steps of {TOKENS:,} tokens. The columns are "
        "numbers of tokens before the predicted one; each has other text, and the early ones little of it, so compare "
        "within a column."
    )
    return result


def draw(found: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """The curves, as a PNG."""
    figure = Figure(figsize=(8.0, 4.6), layout="constrained")
    axes = figure.subplots()
    for index, one in enumerate(found):
        bins = [entry for entry in one["bins"] if entry["first"] >= 16]
        middles = [(entry["first"] * entry["last"]) ** 0.5 for entry in bins]
        style = ("-", "--")[index // 10]
        axes.plot(middles, [entry["loss"] for entry in bins], style, marker="o", ms=3, label=one["model"])
    axes.axvline(options.train_length, color="0.6", lw=1)
    axes.annotate(
        "trained up to here", (options.train_length, 0.02), xycoords=("data", "axes fraction"), fontsize=8, color="0.4"
    )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens before the predicted one")
    axes.set_ylabel("loss [nats per token]")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.plot, dpi=130, metadata={"Software": None})


def main() -> None:
    """Measures all models in turn; prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--train-length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--data", type=Path, default=Path("data/demo"))
    parser.add_argument("--work", type=Path, default=Path("runs/extrapolation"))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.write is not None:
        check_section(options.write, SECTION)
    found = [measure(model, options) for model in options.models]
    result = table(found, options)
    print(json.dumps(found) if options.json else result.markdown())
    if options.plot is not None:
        draw(found, options)
    if options.write is not None:
        write_section(options.write, SECTION, result.markdown())


if __name__ == "__main__":
    main()
