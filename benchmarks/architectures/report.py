"""What was measured of every architecture, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.architectures.training import PROTOCOL, Training
from benchmarks.tables import Table


@dataclass
class Measured:
    """All that was measured of one contestant; lists go by length."""

    model: str
    parameters: int
    flops_per_token: float
    trainings: list[Training] = field(default_factory=list)
    decodings: list[dict[str, Any]] = field(default_factory=list)
    exactness: dict[str, Any] = field(default_factory=dict)
    recall: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without directories."""
        value = asdict(self)
        for training in value["trainings"]:
            del training["run"]
        return value


@dataclass
class Report:
    """What was measured, and with what.

    Attributes:
        lengths, tokens, new, recall: see `benchmarks.architectures.run.Options` and its constants.
        machine: of `benchmarks.machine.describe`.
    """

    lengths: Sequence[int]
    tokens: int
    new: int
    recall: str
    date: str
    command: str
    machine: dict[str, Any]
    models: list[Measured] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "models": [measured.as_dict() for measured in self.models]}

    def markdown(self) -> str:
        """For a document."""
        machine = self.machine
        head = (
            f"Measured on {self.date} with `{self.command}` on {machine['cores']} cores of {machine['processor']}, "
            f"{machine['memory_gib']} GiB, {machine['system']}.\n"
        )
        return "\n".join([head, *(table.markdown() for table in self.tables())])

    def tables(self) -> list[Table]:
        """Quality and size; training speed and memory; decoding speed and memory."""
        return [self._quality(), self._training(), self._decoding()]

    def _quality(self) -> Table:
        first = self.lengths[0]
        table = Table(
            "Size, exactness, recall and loss",
            (
                "model",
                "parameters",
                "FLOPs/token",
                "logits' error",
                "gradients' error",
                "MQAR",
                "validation, bits/byte",
            ),
        )
        for m in self.models:
            recall = next(iter(m.recall["accuracy"].values())) if m.recall else None
            table.rows.append(
                [
                    m.model,
                    f"{m.parameters:,}",
                    f"{m.flops_per_token / 1e6:.1f} M",
                    f"{m.exactness['logits']:.1e}",
                    f"{m.exactness['gradients']:.1e}",
                    recall,
                    m.trainings[0].bits_per_byte,
                ]
            )
        steps = len(self.models[0].trainings[0].losses)
        table.remarks += [
            f"FLOPs of training at {first} tokens. Bits per byte are those of validation after {steps} steps of "
            f"{self.tokens:,} tokens at one learning rate, too few to rank anything: it shows that each learns.",
            "Logits' error: float32, one parallel call on packed validation text of 257 tokens, against float64, token "
            "by token from each document's start; the largest difference over the largest logit. Gradients' error: "
            "float32 against float64, the largest over all parameters of |difference| / |gradient|.",
        ]
        if any(m.recall for m in self.models):
            table.remarks.append(f"MQAR: {self.recall}")
        return table

    def _training(self) -> Table:
        lengths = self.lengths
        table = Table(
            f"Training, {self.tokens:,} tokens a step",
            ("model", *(f"tokens/s at {n:,}" for n in lengths), *(f"peak memory at {n:,}, MB" for n in lengths)),
        )
        for m in self.models:
            rates = [f"{t.tokens_per_s:,.0f}" for t in m.trainings]
            table.rows.append([m.model, *rates, *(f"{t.peak_memory / 1e6:,.0f}" for t in m.trainings)])
        table.remarks.append(
            "Medians over the steps but the first. The peak is the process's, with Python, torch and DeepSpeed (about "
            "270 MB when they are imported); no activations are recomputed. Run by `pha train "
            f"{PROTOCOL.parent.name}/{PROTOCOL.name}`."
        )
        return table

    def _decoding(self) -> Table:
        lengths = self.lengths
        table = Table(
            "Decoding one row after a text of so many tokens",
            (
                *("model", *(f"tokens/s after {n:,}" for n in lengths)),
                *(f"cache after {n:,}, KB" for n in lengths),
                *(f"peak memory after {n:,}, MB" for n in lengths),
            ),
        )
        for m in self.models:
            rates = [f"{d['decode_tokens_per_s']:,.0f}" for d in m.decodings]
            caches = [f"{d['cache_bytes'] / 1e3:,.0f}" for d in m.decodings]
            table.rows.append([m.model, *rates, *caches, *(f"{d['peak_memory'] / 1e6:,.0f}" for d in m.decodings)])
        table.remarks.append(
            f"The text is read in chunks of 512 through the cache; then {self.new} single tokens, whose median "
            "time counts. A cache is what is kept between calls, in float32."
        )
        return table
