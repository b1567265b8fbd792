"""`pha bench`: thin commands around `benchmarks`, a part of the composition root."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pretrain.cli_output import Json, print_json, print_table
from pretrain.errors import RunError
from pretrain.markdown import check_section, write_section

if TYPE_CHECKING:
    from benchmarks.data.run import Report
    from benchmarks.tables import Table

#: What the tables stand between in a Markdown file.
_DATA, _ARCHITECTURES, _KERNELS = "pha bench data", "pha bench architectures", "pha bench kernels"

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
    from benchmarks.data.run import Options, run
    from benchmarks.errors import BenchError

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
        check_section(write, _DATA)
    try:
        report = run(options, _say)
    except BenchError as error:
        raise RunError(str(error)) from error
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)
    if write is not None:
        write_section(write, _DATA, report.markdown())


@bench_app.command("architectures")
def bench_architectures(
    models: Annotated[
        list[str] | None, typer.Argument(help="Presets, or PRESET:key=value,key=value; all architectures if none.")
    ] = None,
    data: Annotated[Path, typer.Option(help="A dataset; the demo's is made if it is not there.")] = Path("data/demo"),
    length: Annotated[list[int] | None, typer.Option(help="Tokens a sequence; 512, 2,048 and 8,192 if none.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a training step.")] = 8192,
    steps: Annotated[int | None, typer.Option(min=2, help="Steps of the first length's run; the protocol's.")] = None,
    new: Annotated[int, typer.Option(min=1, help="Tokens to decode after each length.")] = 64,
    recall_steps: Annotated[int, typer.Option(min=0, help="Steps of the recall probe at most; 0: none.")] = 600,
    work: Annotated[Path | None, typer.Option(help="A directory for the runs; temporary if not given.")] = None,
    write: Annotated[Path | None, typer.Option(help="Put the tables into this Markdown file.")] = None,
    as_json: Json = False,
) -> None:
    """Train and measure every architecture under one protocol: size, speed, memory, exactness and recall."""
    from benchmarks.architectures.contestants import DEFAULT
    from benchmarks.architectures.run import Options, run
    from benchmarks.errors import BenchError

    options = Options(
        models=models or DEFAULT,
        data=data.absolute(),
        lengths=length or (512, 2048, 8192),
        tokens=tokens,
        steps=steps,
        new=new,
        recall_steps=recall_steps,
        work=work,
    )
    if write is not None:
        check_section(write, _ARCHITECTURES)
    try:
        report = run(options, _say)
    except BenchError as error:
        raise RunError(str(error)) from error
    if as_json:
        print_json(report.as_dict())
    else:
        _print_tables(report.tables())
    if write is not None:
        write_section(write, _ARCHITECTURES, report.markdown())


@bench_app.command("kernels")
def bench_kernels(
    presets: Annotated[list[str] | None, typer.Argument(help="Whose shapes; pha-125m and pha-180m if none.")] = None,
    aot: Annotated[bool, typer.Option("--aot", help="Only compile for GPUs: registers, spills, occupancy.")] = False,
    traffic: Annotated[bool, typer.Option("--bytes", help="Only count bytes, in Triton's interpreter.")] = False,
    target: Annotated[list[str] | None, typer.Option(help="sm_80, sm_90, sm_100 or gfx942; all if none.")] = None,
    tokens: Annotated[int, typer.Option(min=64, help="Of the inputs whose bytes are counted.")] = 512,
    write: Annotated[Path | None, typer.Option(help="Put the tables into this Markdown file.")] = None,
    as_json: Json = False,
) -> None:
    """What Triton kernels move and need, without a GPU: bytes beside their floors, registers, spills, occupancy."""
    from benchmarks.errors import BenchError
    from benchmarks.kernels.run import Options, run

    options = Options(
        presets=presets or ("pha-125m", "pha-180m"),
        aot=aot or not traffic,
        traffic=traffic or not aot,
        targets=target or (),
        tokens=tokens,
    )
    if write is not None:
        check_section(write, _KERNELS)
    try:
        report = run(options, _say)
    except BenchError as error:
        raise RunError(str(error)) from error
    if as_json:
        print_json(report.as_dict())
    else:
        _print_tables(report.tables())
    if write is not None:
        write_section(write, _KERNELS, report.markdown())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_tables(tables: list[Table]) -> None:
    for table in tables:
        print_table(table.title, table.columns, table.cells())
        for remark in table.remarks:
            print(f"note: {remark}")
        print()


def _print(report: Report) -> None:
    for section in report.sections:
        print_table(section.title, section.columns, section.cells())
        for goal in section.goals:
            print(f"goal: {goal.line()}")
        for remark in section.remarks:
            print(f"note: {remark}")
        print()
