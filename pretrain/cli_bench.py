"""`pha bench`: thin commands around `benchmarks`, a part of the composition root."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pretrain.cli_output import Json, print_json, print_table
from pretrain.errors import RunError

if TYPE_CHECKING:
    from benchmarks.data.run import Report

#: What its tables stand between in a Markdown file.
_SECTION = "pha bench data"

bench_app = typer.Typer(help="Measure this stack beside others, on this machine.", no_args_is_help=True)


@bench_app.callback()
def _bench() -> None:
    """Measure this stack beside others, on this machine."""


@bench_app.command("data")
def bench_data(
    rounds: Annotated[int | None, typer.Option(min=1, help="Measurements of each contestant; 5, quick 1.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="A section: tokenization, reading, resume, remote or memory; repeatable.")
    ] = None,
    peers: Annotated[
        Path | None,
        typer.Option(help="Interpreter with the other projects' packages; .venv-peers/bin/python if there."),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="Your own files instead of the installed docs.")] = None,
    megabytes: Annotated[float, typer.Option(min=0.1, help="Of the text at most.")] = 20.0,
    sequences: Annotated[int, typer.Option(min=1024, help="Of 2,048 tokens, in the stream that is read.")] = 32_768,
    work: Annotated[Path | None, typer.Option(help="A directory for the data; temporary if not given.")] = None,
    quick: Annotated[bool, typer.Option(help="Small sizes, and peers only if named, to see that it works.")] = False,
    write: Annotated[Path | None, typer.Option(help="Put the tables into this Markdown file.")] = None,
    as_json: Json = False,
) -> None:
    """Tokenizing, reading, resuming, remote reading and memory, beside other libraries on the same data."""
    import sys

    from benchmarks.data.errors import BenchError
    from benchmarks.data.run import Options, run
    from pretrain.markdown import check_section, write_section

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    options = Options(
        rounds=rounds or (1 if quick else 5),
        only=only or (),
        peers=peers,
        sources=text or ("pydoc-topics" if quick else "installed-docs",),
        megabytes=megabytes,
        sequences=sequences,
        quick=quick,
        work=work,
    )
    if write is not None:
        check_section(write, _SECTION)
    try:
        report = run(options, say)
    except BenchError as error:
        raise RunError(str(error)) from error
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)
    if write is not None:
        write_section(write, _SECTION, report.markdown())


def _print(report: Report) -> None:
    for section in report.sections:
        print_table(section.title, section.columns, section.cells())
        for goal in section.goals:
            print(f"goal: {goal.line()}")
        for remark in section.remarks:
            print(f"note: {remark}")
        print()
