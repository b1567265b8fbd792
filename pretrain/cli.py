"""`pha`: the composition root. Every command imports what it needs inside, so that `--help` is instant."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import ClusterError
from data_pipeline.errors import DataError
from model.errors import ModelError
from pretrain import exits
from pretrain.cli_bench import bench_app
from pretrain.cli_check import cordon_app, doctor
from pretrain.cli_cluster import cancel, launch, logs
from pretrain.cli_data import data_app
from pretrain.cli_output import Json, print_json, print_table
from pretrain.cli_plan import plan
from pretrain.cli_status import status
from pretrain.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FATAL,
    EXIT_PEER_LOST,
    RunError,
    lost_a_peer,
    out_of_memory,
)

app = typer.Typer(
    name="pha",
    help="Pretrain parallel hybrid language models, from a laptop to a cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: the decorated one imports a Markdown parser, more time than all the rest
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(cordon_app, name="cordon")
for command_of_cluster in (launch, status, logs, cancel, doctor):
    app.command()(command_of_cluster)
app.command()(plan)

RunArgument = Annotated[Path, typer.Argument(help="A run directory.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides such as train.steps=500.")]


def main() -> None:
    """Runs a command; a problem becomes one sentence on standard error and a non-zero exit code."""
    try:
        app()
    except RunError as error:
        _leave(f"error: {error}", error.exit_code, error.kind)
    except (DataError, ModelError, ClusterError) as error:
        _leave(f"error: {error}", EXIT_BAD_INPUT)
    except BrokenPipeError:  # `pha ... | head`
        os._exit(EXIT_DONE)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        advice = "check the disk's space and permissions, and start again"
        # of a rank: not what somebody typed, and a second try may find the disk well again
        code = EXIT_FATAL if "pretrain.run" in sys.modules else EXIT_BAD_INPUT
        _leave(f"error: {where}{error.strerror or error}; {advice}.", code)
    except Exception as error:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and lost_a_peer(error):
            _leave(f"error: another rank left ({str(error).splitlines()[0]}); its own log tells why.", EXIT_PEER_LOST)
        if out_of_memory(error):
            _leave(_no_memory(error), EXIT_FATAL, kind="out of memory")
        _leave(traceback.format_exc(), EXIT_FATAL)  # a mistake of ours: the traceback is what is needed to mend it


def _no_memory(error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    rank = f"rank {os.environ['RANK']}" if "RANK" in os.environ else "this process"
    return (
        f"error: {rank} is out of memory ({reason}); lower train.micro_batch or data.seq_len, or set "
        "train.recompute.mode=full or a higher train.zero_stage, and start again: the last checkpoint is untouched."
    )


def _leave(words: str, code: int, kind: str = "") -> None:
    """Ends the process at once: a rank that cannot go on must not wait for the others while it tidies up."""
    print(words, file=sys.stderr, flush=True)
    sys.stdout.flush()
    exits.note(code, words, kind)
    record = logging.makeLogRecord({"name": "pha", "levelname": "ERROR", "msg": words})
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):  # the rank's own log; the terminal has it already
            handler.handle(record)
    os._exit(code)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, for example configs/demo.yaml.")],
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(min=1, help="Start so many ranks on this machine.")] = 1,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Short for train.deterministic=true.")] = False,
    supervised: Annotated[
        bool, typer.Option("--supervise", help="Start the ranks again until the run is done, whatever they die of.")
    ] = False,
    hosts: Annotated[
        Path | None, typer.Option(help="--supervise: a file with one host a line; run the same command on each.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="--hosts: which of them this is, if not the host's name.")] = None,
) -> None:
    """Train a run, or go on with it: alone, with --ranks, under torchrun or under srun."""
    from pretrain import config_file

    overrides = [*(overrides or ()), *(["train.deterministic=true"] if deterministic else [])]
    resolved = config_file.load(config, overrides)
    command = [sys.executable, "-m", "pretrain.cli", "train", str(config), *overrides]
    if hosts is not None or host is not None:
        from pretrain.cli_hosts import supervise_on_hosts

        raise typer.Exit(supervise_on_hosts(resolved, command, ranks, supervised, hosts, host))
    if supervised:
        from pretrain.cli_cluster import supervise

        raise typer.Exit(supervise(resolved, command, ranks))
    if ranks > 1:
        from cluster.local import LocalJob
        from pretrain.rundir import RunDirectory

        directory = RunDirectory(resolved.run_dir)
        directory.create()
        with LocalJob(command, ranks, directory.logs) as job:
            raise typer.Exit(job.wait())
    from pretrain.run import train as train_rank

    raise typer.Exit(train_rank(resolved))


@app.command()
def config(path: Annotated[Path, typer.Argument(help="A YAML file.")], overrides: Overrides = None) -> None:
    """Print a run's configuration with every value filled in."""
    from pretrain import config_file

    print(config_file.dump(config_file.load(path, overrides or ())), end="")


@app.command()
def info(
    preset: Annotated[str, typer.Argument(help="A model preset, for example pha-125m.")],
    vocab: Annotated[int | None, typer.Option(min=2, help="Vocabulary, where the preset leaves it open.")] = None,
    seq_len: Annotated[int, typer.Option(min=1, help="Sequence length for the FLOP count.")] = 1024,
    as_json: Json = False,
) -> None:
    """Show a preset's parameters and training FLOPs by part."""
    from model.flops import flops_per_token
    from model.params import count_parameters
    from model.presets import preset as find

    model = find(preset)
    if model.vocab_size is None or vocab:
        model = model.model_copy(update={"vocab_size": vocab or 4096})
    parameters, flops = count_parameters(model), flops_per_token(model, seq_len)
    if as_json:
        print_json(
            {
                "preset": preset,
                "config": model.model_dump(),
                "parameters": parameters,
                "flops_per_token": flops,
            }
        )
        return
    rows = [
        (
            part,
            f"{parameters[part]:,}" if part in parameters else "",
            f"{flops[part]:,.0f}" if part in flops else "",
        )
        for part in sorted(parameters.keys() | flops.keys(), key=lambda p: (p == "total", p))
    ]
    print_table(f"{preset}, vocabulary {model.vocab_size:,}", ("part", "parameters", "training FLOP / token"), rows)


@app.command("eval")
def evaluate(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="validation, test or train.")] = "validation",
    step: Annotated[int | None, typer.Option(help="A checkpoint's step; the newest if not given.")] = None,
    sequences: Annotated[int | None, typer.Option(min=1, help="Only the first so many sequences.")] = None,
    baselines: Annotated[bool, typer.Option(help="Also what a unigram model and xz reach.")] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read long text, and show the perplexity by position.")
    ] = False,
    text: Annotated[Path | None, typer.Option(help="--stream: a text file, as one document.")] = None,
    longest: Annotated[int | None, typer.Option(min=1, help="--stream: the split's so many longest documents.")] = None,
    tokens: Annotated[int | None, typer.Option(min=2, help="--stream: at most so many of each text.")] = None,
    chunk: Annotated[int, typer.Option(min=1, help="--stream: tokens of one call of the model.")] = 1024,
    window: Annotated[int | None, typer.Option(min=1, help="--stream: let the attention see so many tokens.")] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a checkpoint: perplexity per token and per word, bits per byte.

    With --stream text of any length is read in chunks, state carried from one to the next: all documents of the split
    as one stream (nothing ends at their borders), its --longest documents one by one, or a --text.
    """
    if stream:
        from pretrain.cli_stream import show_stream

        show_stream(run, split, step, text, longest, tokens, chunk, window, as_json)
        return
    if any(option is not None for option in (text, longest, tokens, window)):
        raise RunError("The options --text, --longest, --tokens and --window are of long text; add --stream.")
    from pretrain.baselines import measure as measure_baselines
    from pretrain.inference import load

    trained = load(run, step)
    result = trained.evaluate(split, sequences)
    compared = measure_baselines(trained.dataset, split) if baselines else {}
    if as_json:
        print_json({**result.as_dict(), "step": trained.checkpoint.step, "baselines": compared})
        return
    rows = [
        ("tokens", f"{result.tokens:,}"),
        ("loss [nats/token]", f"{result.loss:.4f}"),
        ("perplexity per token", f"{result.perplexity:.2f}"),
        ("perplexity per word", f"{result.word_perplexity:.2f}"),
        ("bits per byte", f"{result.bits_per_byte:.4f}"),
        *((f"bits per byte of {name}", f"{value:.4f}") for name, value in compared.items()),
    ]
    print_table(f"{run}, step {trained.checkpoint.step}, {split}", ("figure", "value"), rows)


@app.command()
def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Argument(help="The text to continue.")] = "",
    tokens: Annotated[int, typer.Option(min=0, max=1_000_000, help="At most so many new tokens.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Sample among so many; no limit if not given.")] = None,
    top_p: Annotated[float, typer.Option(help="Sample within this probability mass.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same text.")] = 0,
    step: Annotated[int | None, typer.Option(help="A checkpoint's step; the newest if not given.")] = None,
) -> None:
    """Let a trained model continue a text."""
    from pretrain.inference import load

    print(load(run, step).generate(prompt, tokens, temperature, top_k, top_p, seed))


@app.command()
def report(run: RunArgument) -> None:
    """Write a run's report: one HTML file with the curves, the mixing weights and a sample."""
    from pretrain.report import write_report

    print(write_report(run))


@app.command()
def average(
    run: RunArgument,
    best: Annotated[int, typer.Option(min=1, help="So many checkpoints, those with the lowest validation losses.")] = 3,
    split: Annotated[str, typer.Option(help="What to evaluate on.")] = "validation",
    sequences: Annotated[int | None, typer.Option(min=1, help="Only the first so many sequences.")] = None,
    as_json: Json = False,
) -> None:
    """Average a run's best checkpoints (averaged.safetensors) and evaluate the mean beside each."""
    from pretrain.average import average as make

    made = make(run, best, split, sequences)
    if as_json:
        evaluations = {name: found.as_dict() for name, found in made.evaluations.items()}
        print_json({"path": str(made.path), "steps": made.steps, "evaluations": evaluations})
        return
    rows = [
        (name, f"{found.loss:.4f}", f"{found.perplexity:.2f}", f"{found.bits_per_byte:.4f}")
        for name, found in made.evaluations.items()
    ]
    print_table(f"{made.path}: {split}", ("weights", "loss", "perplexity", "bits/byte"), rows)


@app.command()
def probe(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Architectures or presets, such as mamba2 or pha:attention.window=16, and model.x=y for all."
        ),
    ],
    task: Annotated[list[str] | None, typer.Option(help="A probe; all of them if none is given.")] = None,
    width: Annotated[int, typer.Option(min=1, help="Width of every model.")] = 64,
    layers: Annotated[int, typer.Option(min=1, help="Layers of every model.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Training steps, at most.")] = 400,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 64,
    rate: Annotated[list[float] | None, typer.Option(help="Learning rates to choose from.")] = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Seeds to average over.")] = None,
    test_rows: Annotated[int, typer.Option(min=1, help="Rows of a test.")] = 256,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a PNG of the accuracies.")] = None,
    as_json: Json = False,
) -> None:
    """Train and score small models on recall, copying, induction and state tracking."""
    from pretrain.cli_probe import run_probes
    from pretrain.probes.train import Settings

    defaults = Settings()
    settings = Settings(
        steps=steps,
        batch=batch,
        rates=tuple(rate or defaults.rates),
        seeds=tuple(seed or defaults.seeds),
        test_rows=test_rows,
    )
    run_probes(models, task or (), width, layers, settings, threads, plot, as_json)


@app.command()
def demo(
    text: Annotated[
        list[str] | None, typer.Option("--text", help="Your own files instead of the installed docs.")
    ] = None,
    run: Annotated[Path, typer.Option(help="The run directory.")] = Path("runs/demo"),
    data: Annotated[Path, typer.Option(help="The dataset directory.")] = Path("data/demo"),
    overrides: Overrides = None,
) -> None:
    """The whole way on this machine: text, shards, training, a kill, a resume, evaluation, a report."""
    from cluster.local import LocalJob
    from pretrain.demo import Demo

    def launch(command: list[str], ranks: int, output: Path) -> LocalJob:
        return LocalJob(command, ranks, output)

    Demo(run, data, tuple(text or ()), tuple(overrides or ()), launch).go()


if __name__ == "__main__":
    main()
