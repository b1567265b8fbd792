"""Section 1: text to ids by our tokenizer, by SentencePiece alone and by Hugging Face `datasets.map`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.data.runner import Contestant, Outcome, Runner
from benchmarks.data.sizes import Sizes
from benchmarks.data.tables import Goal, Section, ratio

_DATASETS, _FAST = ("datasets", "sentencepiece"), ("datasets", "tokenizers")
#: Row → its label; each has a contestant of one process and one of two.
_LABELS = {
    "ours": "ours, word memo cold (encode alone)",
    "warm": "ours, word memo warm (encode alone)",
    "build": "ours, encode stage of `pha data build`",
    "sentencepiece": "SentencePiece EncodeAsIds (encode alone)",
    "map-sentencepiece": "HF datasets.map, the same SentencePiece",
    "map-fast": "HF datasets.map, tokenizers BPE",
}


def measure(runner: Runner, sizes: Sizes, sources: Sequence[str], thorough: bool = True) -> Section:
    """Train the tokenizers, compare ids, measure. `thorough` runs everything with two processes too.

    Raises BenchError.
    """
    documents, model = str(runner.work / "documents.json"), str(runner.work / "tokenizer.model")
    runner.say("collecting the text and training a tokenizer")
    text = runner.run("tokenize.text", {"sources": list(sources), "path": documents, "megabytes": sizes.megabytes})
    both = {"documents": documents, "model": model}
    runner.run("tokenize.train", {"documents": documents, "model": model, "vocabulary": sizes.vocabulary})
    compared = runner.run("tokenize.compare", both)
    fast = str(runner.work / "fast.json")
    if not runner.missing(_FAST):
        runner.say("training the BPE of tokenizers on the same text")
        runner.run(
            "tokenize.train-fast", {"documents": documents, "model": fast, "vocabulary": sizes.vocabulary}, peer=True
        )
    outcomes = runner.measure(_contestants(both, fast, thorough))
    section = Section(
        key="tokenization",
        title="Tokenization",
        columns=("", "MB/CPU-s", "× SentencePiece", "MB/s, 1 process", "MB/s, 2 processes", "speed-up"),
        checks={"text": text, "compared": compared},
        outcomes=outcomes,
    )
    for key in _LABELS:
        _add(section, key)
    _conclude(section, text, compared, sizes)
    return section


def _contestants(both: dict[str, str], fast: str, thorough: bool) -> list[Contestant]:
    found = []
    for processes in (1, 2) if thorough else (1,):
        ours: dict[str, Any] = {**both, "module": "ours_tokenize", "processes": processes}
        arguments: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
            "ours": ("tokenize.pair", ours, ()),
            "warm": ("tokenize.pair", {**ours, "warm": True}, ()),
            "build": ("tokenize.build", {**both, "workers": processes}, ()),
            "sentencepiece": ("tokenize.pair", {**ours, "module": "peer_tokenize"}, ()),
            "map-sentencepiece": (
                "tokenize.datasets",
                {**both, "kind": "sentencepiece", "processes": processes},
                _DATASETS,
            ),
            "map-fast": (
                "tokenize.datasets",
                {**both, "model": fast, "kind": "fast", "processes": processes},
                _FAST,
            ),
        }
        for key, (worker, options, needs) in arguments.items():
            found.append(Contestant(f"{key}-{processes}", _LABELS[key], worker, options, needs))
    return found


def _add(section: Section, key: str) -> None:
    one = section.outcomes[f"{key}-1"]
    two = section.outcomes.get(f"{key}-2", Outcome(one.label))
    if one.problem is None and two.problem is not None:
        one.problem = two.problem
    base = _rate(section.outcomes["sentencepiece-1"])
    section.add(
        one,
        _rate(one),
        ratio(_rate(one), base),
        _rate(one, "wall_s"),
        _rate(two, "wall_s"),
        ratio(_rate(two, "wall_s"), _rate(one, "wall_s")),
    )


def _rate(outcome: Outcome, per: str = "cpu_s") -> float | None:
    """MB a second."""
    rate = outcome.rate("bytes", per)
    return None if rate is None else rate / 1e6


def _conclude(section: Section, text: dict[str, Any], compared: dict[str, Any], sizes: Sizes) -> None:
    one = {key: _rate(section.outcomes[f"{key}-1"]) for key in _LABELS}
    wall = {key: [_rate(section.outcomes.get(f"{key}-{n}", Outcome("")), "wall_s") for n in (1, 2)] for key in _LABELS}
    section.goals += [
        Goal.most("documents whose ids are not SentencePiece's", compared["differing"], 0),
        Goal.least("at least 2 × SentencePiece per CPU-second, cold", ratio(one["ours"], one["sentencepiece"]), 2.0),
        Goal.least("at least 1.8 × with two processes, encode alone", ratio(*wall["ours"][::-1]), 1.8),
        Goal.least("at least 1.8 × with two processes, encode stage", ratio(*wall["build"][::-1]), 1.8),
        *(
            Goal.least(f"{name} at least 2 × {_LABELS[peer]}", ratio(one[key], one[peer]), 2.0)
            for key, name in (("ours", "encode alone, cold,"), ("build", "encode stage"))
            for peer in ("map-sentencepiece", "map-fast")
        ),
    ]
    section.remarks += [
        f"Text: {text['documents']:,} documents, {text['bytes'] / 1e6:.1f} MB of UTF-8; vocabulary "
        f"{sizes.vocabulary:,}, trained on the same text.",
        f"Ids compared over all {compared['documents']:,} documents, of which {compared['with_space_mark']} hold "
        "U+2581, which SentencePiece takes for a space; those are compared by the parts between.",
        "Encode alone keeps the ids in memory. The encode stage also reads its spool, decodes every document again to "
        "compare it and writes files; datasets.map reads and writes Arrow files and starts its processes itself.",
        "All run without threads of their own: a process is one core.",
    ]
