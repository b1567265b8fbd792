"""`pha eval --stream`: long text in chunks, and its perplexity by position."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from pretrain import long_text
from pretrain.cli_output import print_json, print_table
from pretrain.errors import RunError
from pretrain.inference import load
from pretrain.long_text import LongText
from pretrain.stream_eval import Reading, perplexity, read


def show_stream(
    run: Path,
    split: str,
    step: int | None,
    text: Path | None,
    longest: int | None,
    tokens: int | None,
    chunk: int,
    window: int | None,
    as_json: bool,
) -> None:
    """Reads and prints; the arguments are the command's options.

    Raises RunError for options that do not go together, a text that cannot be read, or a model whose memory of it
    would not fit; DataError for a split that there is not.
    """
    if text is not None and longest is not None:
        raise RunError("Both --text and --longest name what to read; give one of them.")
    trained = load(run, step, window)
    texts: Iterable[LongText]
    if text is not None:
        texts, source = [long_text.of_file(text, trained.corpus.tokenizer())], f"{text} as one document"
    elif longest is not None:
        texts = long_text.longest(trained.corpus, split, longest)
        source = f"the {len(texts)} longest documents of {split}, each with a fresh state"
    else:
        texts = [long_text.of_split(trained.corpus, split)]
        source = f"all documents of {split} as one stream, without a fresh state between them"
    result = read(trained.model, texts, source, chunk, tokens, _tell)
    if as_json:
        print_json({**result.as_dict(), "step": trained.checkpoint.step, "window": window})
        return
    rows = [
        (
            f"{b.first:,} to {b.last:,}",
            f"{b.tokens:,}",
            f"{b.loss:.4f}",
            f"{perplexity(b.loss):,.2f}",
            f"{b.peak_bytes / 1e6:,.0f}",
        )
        for b in result.bins
    ]
    total = (
        "all",
        f"{result.tokens:,}",
        f"{result.loss:.4f}",
        f"{perplexity(result.loss):,.2f}",
        f"{result.peak_bytes / 1e6:,.0f}",
    )
    rate = f"{result.tokens / result.seconds:,.0f} tokens/s in chunks of {chunk}"
    print_table(
        f"{run}, step {trained.checkpoint.step}: {source}; {rate}",
        ("tokens before", "predicted", "loss [nats]", "perplexity", "peak memory [MB]"),
        [*rows, total],
    )


def _tell(reading: Reading) -> None:
    """A sign of life."""
    words = f"{reading.tokens:,} tokens, perplexity {perplexity(reading.loss):,.2f}, {reading.peak_bytes / 1e6:,.0f} MB"
    print(words, file=sys.stderr, flush=True)
