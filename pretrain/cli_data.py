"""`pha data`: thin commands around `data_pipeline`, a part of the composition root."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from pretrain.cli_array import array_config, data_status, launch_build
from pretrain.cli_output import Json, figure, print_json, print_table
from pretrain.errors import RunError

data_app = typer.Typer(help="Turn text into a tokenized dataset, and check one.", no_args_is_help=True)
_SOURCES = "Files, globs or URLs (https://, s3://) of text, JSONL, Parquet, tar, WARC or WET; hf:NAME; installed-docs."
Dataset = Annotated[Path, typer.Argument(help="A dataset.")]
data_app.command("status")(data_status)


class Packing(enum.StrEnum):
    """How documents become sequences."""

    concatenate = "concatenate"
    best_fit = "best_fit"


class Preset(enum.StrEnum):
    """Which rules clean the text, where nothing else is said."""

    none = "none"
    basic = "basic"
    web = "web"


@data_app.command("build")
def data_build(
    target: Annotated[Path, typer.Argument(help="A build's .yaml file, or the dataset's directory before sources.")],
    sources: Annotated[list[str] | None, typer.Argument(help=_SOURCES)] = None,
    vocab: Annotated[int | None, typer.Option(help="Vocabulary of the tokenizer that is trained.")] = None,
    kind: Annotated[str | None, typer.Option(help="bpe or unigram.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Use this model, or folder of GPT-2's files, instead.")] = None,
    validation: Annotated[float | None, typer.Option(help="Share of documents for validation.")] = None,
    test: Annotated[float | None, typer.Option(help="Share of documents for the test.")] = None,
    clean: Annotated[Preset | None, typer.Option(help="Rules that clean the text; single ones in a .yaml.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result is the same for any number.")] = 1,
    part: Annotated[str | None, typer.Option(help="I/N: do only the I-th of N shares, for a job array.")] = None,
    finish: Annotated[bool, typer.Option(help="Put together what --part has left.")] = False,
    launch: Annotated[bool, typer.Option("--launch", help="Build on Slurm, from a login node.")] = False,
    tasks: Annotated[int | None, typer.Option(min=1, help="--launch: short for --cluster tasks=N.")] = None,
    cluster: Annotated[list[str] | None, typer.Option(help="--launch: a setting, such as time=2:00:00.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="--launch: only print the script.")] = False,
    as_json: Json = False,
) -> None:
    """Clean, split, tokenize and write a dataset of WebDataset shards; a build that was killed goes on.

    With --launch the tasks of a Slurm job array share the work; the section `cluster` of the file, and --cluster, say
    where and how.
    """
    from data_pipeline.build import build, build_part
    from data_pipeline.build_file import build_settings, share
    from data_pipeline.config import BuildConfig
    from data_pipeline.stats import stats
    from pretrain.config_file import validated

    options = {
        "tokenizer": {"kind": kind, "vocab_size": vocab, "model": tokenizer},
        "validation_fraction": validation,
        "test_fraction": test,
        "clean": {"preset": clean.value if clean else None},
    }
    tree = build_settings(target, sources or [], options)
    array = array_config(tree.pop("cluster", {}), cluster or [], tasks, str(target))
    config = validated(BuildConfig, tree, str(target))
    if launch:
        if part is not None or finish or workers != 1:
            raise RunError("--part, --finish and --workers are not of --launch; --cluster cpus_per_task=N is.")
        launch_build(config, array, dry_run, as_json)
        return
    if tasks is not None or cluster or dry_run:
        raise RunError("--tasks, --cluster and --dry-run are of --launch; add it.")
    if part is not None:
        encoded = build_part(config, *share(part), progress=not as_json, workers=workers)
        done = {"output": str(config.output), "part": part, "stage": "encoded" if encoded else "read"}
        if as_json:
            print_json(done)
        else:
            following = "finish with --finish" if encoded else "once all shares are read, repeat them or --finish"
            print(f"{config.output}: share {part} is {done['stage']}; {following}")
        return
    build(config, progress=not as_json, workers=workers, finish=finish)
    _show_stats(config.output, stats(config.output), as_json)


@data_app.command("index")
def data_index(
    tars: Annotated[list[str], typer.Argument(help="WebDataset archives (or globs) with .txt or .json members.")],
    output: Annotated[Path, typer.Argument(help="The dataset's directory.")],
    text_field: Annotated[str, typer.Option(help="The field of .json members that holds the text.")] = "text",
    vocab: Annotated[int, typer.Option(help="Vocabulary of the tokenizer that is trained.")] = 32_000,
    kind: Annotated[str, typer.Option(help="bpe or unigram.")] = "bpe",
    tokenizer: Annotated[Path | None, typer.Option(help="Use this model, or folder of GPT-2's files, instead.")] = None,
    validation: Annotated[float, typer.Option(help="Share of documents for validation.")] = 0.005,
    test: Annotated[float, typer.Option(help="Share of documents for the test.")] = 0.005,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result is the same for any number.")] = 1,
    as_json: Json = False,
) -> None:
    """Tokenize foreign archives of raw text once, so that reading them is exact and resumable from then on."""
    from data_pipeline.build import build
    from data_pipeline.config import BuildConfig
    from data_pipeline.stats import stats
    from pretrain.config_file import validated

    options = {
        "sources": [{"spec": spec, "format": "tar", "text_field": text_field} for spec in tars],
        "output": output,
        "tokenizer": {"kind": kind, "vocab_size": vocab, "model": tokenizer},
        "validation_fraction": validation,
        "test_fraction": test,
    }
    build(validated(BuildConfig, options, "pha data index"), progress=not as_json, workers=workers)
    _show_stats(output, stats(output), as_json)


@data_app.command("append")
def data_append(
    dataset: Dataset,
    sources: Annotated[list[str], typer.Argument(help=_SOURCES)],
    as_json: Json = False,
) -> None:
    """Add documents as new shards; those that the dataset holds already are dropped."""
    from data_pipeline.append import append
    from data_pipeline.stats import stats

    append(dataset, sources, progress=not as_json).close()
    _show_stats(dataset, stats(dataset), as_json)


@data_app.command("merge")
def data_merge(
    output: Annotated[Path, typer.Argument(help="The new dataset's directory.")],
    datasets: Annotated[list[Path], typer.Argument(help="Datasets of one tokenizer.")],
    as_json: Json = False,
) -> None:
    """Write the documents of several datasets, each once, into a new one."""
    from data_pipeline.merge import merge
    from data_pipeline.stats import stats

    merge(output, datasets, progress=not as_json).close()
    _show_stats(output, stats(output), as_json)


@data_app.command("show")
def data_show(
    dataset: Dataset,
    document: Annotated[str, typer.Argument(help="A document's number, or the beginning of its hash.")],
    as_json: Json = False,
) -> None:
    """Print one document: its text, and where it lies."""
    from data_pipeline.show import show

    found = show(dataset, document)
    if as_json:
        print_json(found)
        return
    text = found.pop("text")
    print_table(f"{dataset} {document}", ("", "document"), [(name, figure(value)) for name, value in found.items()])
    print(text)


@data_app.command("tokenizer")
def data_tokenizer(
    dataset: Dataset,
    gpt2: Annotated[Path | None, typer.Option(help="Folder of GPT-2's encoder.json and vocab.bpe.")] = None,
    as_json: Json = False,
) -> None:
    """Report compression and coverage of a dataset's tokenizer, beside GPT-2's."""
    from data_pipeline.compression import tokenizer_report

    found = tokenizer_report(dataset, gpt2)
    if as_json:
        print_json(found)
        return
    rows = [
        (f"{split}, {who}", *map(figure, part[who].values()))
        for split, part in found["splits"].items()
        for who in ("dataset", "gpt2")
        if who in part
    ]
    names = next(iter(found["splits"].values()))["dataset"]
    print_table(str(dataset), ("text, tokenizer", *names), rows)
    print_table("vocabulary in train", ("figure", ""), [(k, figure(v)) for k, v in found["vocabulary"].items()])


@data_app.command("report")
def data_report(
    dataset: Dataset,
    gpt2: Annotated[Path | None, typer.Option(help="Folder of GPT-2's encoder.json and vocab.bpe.")] = None,
    write: Annotated[
        Path | None, typer.Option(help="Put the report between the markers of this Markdown file.")
    ] = None,
) -> None:
    """Print a build's report as Markdown: sources, rules with samples, overlaps, splits, compression."""
    from data_pipeline.build_report import build_report
    from pretrain.markdown import write_section

    text = build_report(dataset, gpt2)
    if write is None:
        print(text, end="")
    else:
        write_section(write, "pha data report", text)


@data_app.command("verify")
def data_verify(dataset: Annotated[Path, typer.Argument(help="A dataset.")], as_json: Json = False) -> None:
    """Re-hash every shard, check every block and decode samples."""
    from data_pipeline.verify import verify

    result = verify(dataset)
    if as_json:
        print_json(result.as_dict())
    else:
        for problem in result.problems:
            print(f"problem: {problem}")
        print(
            f"{dataset}: {len(result.problems)} problem(s), {result.blocks:,} blocks and {result.shards} shards checked"
        )
    raise typer.Exit(1 if result.problems else 0)


@data_app.command("stats")
def data_stats(
    dataset: Annotated[Path, typer.Argument(help="A dataset.")],
    packing: Annotated[Packing | None, typer.Option(help="Also the padding share of this packing.")] = None,
    seq_len: Annotated[int, typer.Option(help="Tokens of a sequence, for --packing.")] = 1024,
    as_json: Json = False,
) -> None:
    """Count documents, tokens, bytes and words by split."""
    from data_pipeline.stats import stats

    _show_stats(dataset, stats(dataset, packing.value if packing else None, seq_len), as_json)


def _show_stats(dataset: Path, found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    splits: dict[str, dict[str, Any]] = found["splits"]
    figures = list(next(iter(splits.values())))
    rows = [(name, *(figure(split[name]) for split in splits.values())) for name in figures]
    print_table(str(dataset), ("figure", *splits), rows)
