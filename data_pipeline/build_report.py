"""The report of a build as a Markdown page: what came in, what was dropped and why, and what the dataset holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.compression import tokenizer_report
from data_pipeline.stats import stats


def build_report(path: Path | str, gpt2: Path | None = None) -> str:
    """The report of the dataset at `path`; with `gpt2`, the folder of GPT-2's files, compression beside GPT-2's.

    Raises DataError if the dataset is damaged, or the GPT-2 files are.
    """
    found = stats(path)
    report = found["report"]
    parts = [
        _sources(report),
        _rules(report),
        _edits(report),
        _splits(found["splits"]),
        _compression(tokenizer_report(path, gpt2)),
        f"Hash `{found['hash']}`, tokens as {found['dtype']}, blocks of about {found['block_tokens']:,} tokens.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], numbers_from: int = 1) -> str:
    rule = ["---"] * numbers_from + ["---:"] * (len(columns) - numbers_from)
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, tuple(rule), *rows))


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f}"


def _sources(report: dict[str, Any]) -> str:
    rows = [
        (
            f"`{_shown(spec)}`",
            f"{source['documents_read']:,}",
            _mb(source["bytes_read"]),
            f"{sum(source['rejected'].values()):,}",
            f"{source['duplicates']:,}",
            f"{source['documents_kept']:,}",
            _mb(source["bytes_kept"]),
        )
        for spec, source in {**report["sources"], "all": report}.items()
    ]
    return _table(("source", "documents", "MB", "rejected", "exact duplicates", "kept", "MB kept"), rows)


def _rules(report: dict[str, Any]) -> str:
    rows = []
    for rule, count in sorted(report["rejected"].items(), key=lambda item: -item[1]):
        if count:
            sample = next(iter(report["samples"].get(rule, ())), "")
            size = report["bytes_rejected"].get(rule, 0)
            rows.append((f"`{rule}`", _cell(sample), f"{count:,}", _mb(size)))
    quiet = sorted(rule for rule, count in report["rejected"].items() if not count)
    table = _table(("rule", "the head of a document it rejected", "documents", "MB"), rows, 2) if rows else ""
    return "\n\n".join(filter(None, [table, f"Asked and never met: {', '.join(quiet)}." if quiet else ""]))


def _edits(report: dict[str, Any]) -> str:
    edits = ", ".join(f"{name} {count:,}" for name, count in sorted(report["edits"].items()) if count)
    overlaps = "; ".join(
        f"{name}: " + ", ".join(f"{key} {value:,}" for key, value in part.items() if isinstance(value, int | float))
        for name, part in report.get("overlaps", {}).items()
    )
    lines = [f"Edits: {edits}." if edits else "", f"Overlaps: {overlaps}." if overlaps else ""]
    return "\n\n".join(filter(None, lines))


def _splits(splits: dict[str, dict[str, Any]]) -> str:
    figures = (
        ("documents", ",d"),
        ("tokens", ",d"),
        ("words", ",d"),
        ("bytes", ",d"),
        ("blocks", ",d"),
        ("shards", ",d"),
        ("tar_overhead", ".2%"),
    )
    rows = [(name, *(format(split[name], form) for split in splits.values())) for name, form in figures]
    return _table(("", *splits), rows)


def _compression(report: dict[str, Any]) -> str:
    rows = [
        (
            split,
            who,
            f"{part[who]['bytes_per_token']:.3f}",
            f"{part[who]['tokens_per_word']:.3f}",
            f"{part[who]['single_byte_share']:.2%}",
        )
        for split, part in report["splits"].items()
        for who in ("dataset", "gpt2")
        if who in part
    ]
    vocabulary = report["vocabulary"]
    line = (
        f"Vocabulary: {vocabulary['size']:,} pieces ({report['tokenizer']['kind']}), {vocabulary['used']:,} used in "
        f"train ({vocabulary['coverage']:.1%}), {vocabulary['seldom']:,} of them less than 100 times."
    )
    names = ("text", "tokenizer", "bytes per token", "tokens per word", "tokens of one byte")
    return f"{line}\n\n{_table(names, rows, 2)}"


def _shown(spec: str) -> str:
    """A source without the folders of the machine it lay on: a glob from the folder before its first wildcard on."""
    if "://" in spec or "/" not in spec:
        return spec
    parts = Path(spec).parts
    wild = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), len(parts) - 1)
    return "/".join(parts[max(0, wild - 1) :])


def _cell(text: str) -> str:
    line = " ".join(text.split())[:70].replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
    return f"“{line}…”" if line else ""
