"""One self-contained HTML page about a run: curves, mixing weights, a sample and the settings."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from pretrain import metrics
from pretrain.errors import RunError
from pretrain.files import write_atomic
from pretrain.metrics import Record
from pretrain.rundir import RunDirectory

mpl.use("svg")  # no screen is needed, and text stays text
mpl.rcParams.update(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "svg.fonttype": "none",
        "svg.hashsalt": "pha",
        "font.family": "sans-serif",
    }
)
from matplotlib.figure import Figure  # noqa: E402  # after the backend is chosen

BLUE, ORANGE, GREEN, GREY = "#2563a8", "#d9730d", "#3f8f4f", "#777777"
BRANCH_COLOURS = {"gss": BLUE, "attention": ORANGE, "ffn": GREEN}


def write_report(run: Path) -> Path:
    """Writes `report.html` into the run directory and returns its path.

    Raises RunError when the directory holds no run, or a run without a single record.
    """
    directory = RunDirectory(run)
    config = directory.read_config()
    records = metrics.read(directory.metrics)
    training = metrics.of_kind(records, "train")
    if not training:
        raise RunError(f"{directory.metrics} has no training record yet; train the run first.")
    baselines = _read_json(run / "baselines.json")
    page = _template().render(
        name=run.name,
        summary=_summary(records, baselines),
        figures=_figures(records, baselines),
        sample=_read_json(directory.sample),
        evaluations=_read_json(run / "evaluation.json"),
        config=json.dumps(config.model_dump(mode="json"), indent=2),
    )
    write_atomic(directory.report, page)
    return directory.report


def _template() -> Any:
    environment = Environment(loader=PackageLoader("pretrain"), autoescape=select_autoescape(default=True))
    environment.filters["number"] = _number
    return environment.get_template("report.html.jinja")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _summary(records: list[Record], baselines: dict[str, float]) -> list[tuple[str, str]]:
    training, validation = metrics.of_kind(records, "train"), metrics.of_kind(records, "validation")
    rates = sorted(r["tokens_per_s"] for r in training)
    last = training[-1]
    rows = [
        ("Steps", f"{last['step']:,}"),
        ("Tokens seen", f"{last['tokens_seen']:,}"),
        ("Last training loss", f"{last['loss']:.4f} nats/token"),
        ("Median throughput", f"{rates[len(rates) // 2]:,.0f} tokens/s"),
        ("Most memory of one process", f"{max(r.get('peak_memory', 0) for r in training) / 1e6:,.0f} MB"),
        ("Times resumed", str(sum(r.get("event") == "resume" for r in records))),
    ]
    if last.get("mfu_parts"):
        parts = sorted(last["mfu_parts"].items(), key=lambda part: -part[1])
        shares = ", ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in parts)
        rows.append(("Model FLOPs utilisation", f"{last['mfu']:.1%}: {shares}"))
    if validation:
        final = validation[-1]
        rows += [
            (
                "Validation perplexity",
                f"{_number(final['perplexity'])} per token, {_number(final['word_perplexity'])} per word",
            ),
            ("Validation bits per byte", _number(final["bits_per_byte"], 4)),
        ]
    return rows + [(f"{name}, same text", f"{value:.4f} bits per byte") for name, value in baselines.items()]


def _number(value: float | None, digits: int = 2) -> str:
    """A figure for people; what was infinite or not a number is null in the records."""
    return "not finite" if value is None else f"{value:,.{digits}f}"


def _figures(records: list[Record], baselines: dict[str, float]) -> list[tuple[str, Markup]]:
    training, validation = metrics.of_kind(records, "train"), metrics.of_kind(records, "validation")
    resumes = [r["step"] for r in metrics.of_kind(records, "event") if r.get("event") == "resume"]
    steps = [r["step"] for r in training]

    def curve(key: str, label: str, colour: str = BLUE, log: bool = False) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            values = [r[key] if r[key] is not None else float("nan") for r in training]
            axes.plot(steps, values, color=colour, lw=1.2)
            axes.set_ylabel(label)
            if log:
                axes.set_yscale("log")

        return draw

    def validated(axes: Any, key: str, label: str) -> None:
        axes.plot([r["step"] for r in validation], [r[key] for r in validation], "o-", color=ORANGE, ms=4, label=label)

    def loss(axes: Any) -> None:
        axes.plot(steps, [r["loss"] for r in training], color=BLUE, lw=1.2, label="training")
        validated(axes, "loss", "validation")
        axes.set_ylabel("loss [nats per token]")
        axes.legend(frameon=False)

    def bits(axes: Any) -> None:
        validated(axes, "bits_per_byte", "this model")
        for (name, value), colour in zip(baselines.items(), (GREY, GREEN, BLUE), strict=False):
            axes.axhline(value, ls="--", lw=1, color=colour, label=f"{name} {value:.2f}")
        axes.set_ylabel("validation bits per byte")
        axes.legend(frameon=False)

    def throughput(axes: Any) -> None:
        curve("tokens_per_s", "tokens per second")(axes)
        axes.set_ylim(bottom=0)

    figures = [
        ("Loss", _svg(loss, resumes)),
        ("Validation, bits per byte", _svg(bits, resumes)),
        ("Learning rate", _svg(curve("lr", "learning rate"), resumes)),
        ("Gradient norm, before clipping", _svg(curve("grad_norm", "norm", log=True), resumes)),
        ("Throughput", _svg(throughput, resumes)),
        ("Share of time spent waiting for data", _svg(curve("data_wait", "share", GREY), resumes)),
    ]
    if training[-1].get("mixing"):  # only the parallel hybrid mixes branches
        figures += [
            ("Mixing weights after the last step, by layer", _svg(_mixing_by_layer(training[-1]), [], "layer")),
            ("Mixing weights over training, mean of layers", _svg(_mixing_over_time(training), resumes)),
        ]
    if training[-1].get("selected"):  # only Taipan selects
        figures.append(
            ("Share of tokens that attend, by selective layer", _svg(_selected(training, validation), resumes))
        )
    return figures


def _selected(training: list[Record], validation: list[Record]) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        for layer in range(len(training[-1]["selected"])):
            (line,) = axes.plot(
                [r["step"] for r in training],
                [r["selected"][layer] for r in training],
                lw=1.2,
                label=f"layer {layer + 1}",
            )
            chosen = [r for r in validation if r.get("selected")]
            axes.plot(
                [r["step"] for r in chosen], [r["selected"][layer] for r in chosen], "o", ms=4, color=line.get_color()
            )
        axes.set_ylabel("share (dots: validation, without noise)")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)

    return draw


def _mixing_by_layer(record: Record) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        layers = list(range(len(record["mixing"])))
        bottom = [0.0] * len(layers)
        for index, branch in enumerate(record["branches"]):
            values = [weights[index] for weights in record["mixing"]]
            axes.bar(layers, values, bottom=bottom, color=BRANCH_COLOURS[branch], label=branch, width=0.7)
            for layer, (value, base) in enumerate(zip(values, bottom, strict=True)):
                axes.text(
                    layer,
                    base + value / 2,
                    f"{value:.0%}",
                    ha="center",
                    va="center",
                    color="white",
                    fontsize=8,
                )
            bottom = [b + v for b, v in zip(bottom, values, strict=True)]
        axes.set_xticks(layers)
        axes.set_ylabel("weight")
        axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.15))
        axes.grid(False)

    return draw


def _mixing_over_time(training: list[Record]) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        for index, branch in enumerate(training[-1]["branches"]):
            means = [sum(layer[index] for layer in r["mixing"]) / len(r["mixing"]) for r in training]
            axes.plot([r["step"] for r in training], means, color=BRANCH_COLOURS[branch], lw=1.4, label=branch)
        axes.set_ylabel("weight")
        axes.legend(frameon=False)

    return draw


def _svg(draw: Callable[[Any], None], resumes: list[int], xlabel: str = "step") -> Markup:
    """The drawing as inline SVG; dotted lines mark where the run was resumed."""
    figure = Figure(figsize=(5.6, 3.1), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    for step in resumes:
        axes.axvline(step, color=GREY, lw=1, ls=":")
    axes.set_xlabel(xlabel)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])  # our own drawing, no user text but escaped labels
