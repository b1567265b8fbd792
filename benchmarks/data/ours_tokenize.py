"""Our tokenizer as a contestant, alone, in the build's own stage, and held against the library."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.data.measure import Meter
from benchmarks.data.pair import Job, share
from data_pipeline.config import BuildConfig, CleanConfig, TokenizerConfig
from data_pipeline.errors import DataError
from data_pipeline.tokenizer import load_tokenizer, train_tokenizer

#: A source beside those of `pha data build`.
PYDOC = "pydoc-topics"
_SPACE = "\u2581"


def collect(sources: list[str], path: str, megabytes: float) -> dict[str, Any]:
    """Write the distinct documents of the sources, up to so many MB of UTF-8, as a JSON list of texts.

    `pydoc-topics` is the half a megabyte of help topics that every Python has. Raises DataError for a source that
    cannot be read or holds nothing.
    """
    texts: dict[str, None] = {}
    bytes_ = 0
    for text in (text for source in sources for text in _texts(source)):
        if text and text not in texts:
            texts[text] = None
            bytes_ += len(text.encode("utf-8"))
        if bytes_ >= megabytes * 1e6:
            break
    if not texts:
        raise DataError(f"{', '.join(sources)} holds no text: name other sources.")
    Path(path).write_text(json.dumps(list(texts)), encoding="utf-8")
    return {"documents": len(texts), "bytes": bytes_}


def _texts(source: str) -> Iterator[str]:
    if source == PYDOC:
        from pydoc_data.topics import topics

        yield from topics.values()
        return
    from data_pipeline.sources import read_documents

    for document in read_documents(source):
        yield document.text


def train(documents: str, model: str, vocabulary: int) -> dict[str, Any]:
    """Train a BPE model on the documents, as `pha data build` does. Raises DataError."""
    tokenizer = train_tokenizer(share(documents), TokenizerConfig(vocab_size=vocabulary), Path(model))
    return {"pieces": tokenizer.vocab_size}


def prepare(documents: str, model: str, part: int = 0, parts: int = 1, warm: bool = False) -> Job:
    """Load the tokenizer and the texts of one share; `warm` encodes them once before. Raises DataError."""
    texts, tokenizer = share(documents, part, parts), load_tokenizer(model)

    def encode() -> int:
        return sum(len(tokenizer.encode_array(text)) for text in texts)

    if warm:
        encode()
    return Job(encode, sum(len(text.encode("utf-8")) for text in texts))


def measure_build(documents: str, model: str, workers: int) -> dict[str, Any]:
    """The encode stage of `pha data build`, as it is: reads its spool, encodes, decodes to compare, writes its files.

    The pool's workers have started before, in the stage that reads. Raises DataError.
    """
    # here, because these import torch, which the other contestants' processes need not wait for
    from data_pipeline.build_plan import fingerprint_of, make_plan, write_plan
    from data_pipeline.build_pool import Pool
    from data_pipeline.compare import make_overlaps
    from data_pipeline.encode import make_tokenizer
    from data_pipeline.spool import range_count, spool_totals

    with tempfile.TemporaryDirectory(prefix="pha-bench-", dir=Path(documents).parent) as directory:
        source = Path(directory) / "texts.jsonl"
        with source.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in share(documents))
        config = BuildConfig(
            sources=(str(source),),
            output=Path(directory) / "dataset",
            tokenizer=TokenizerConfig(model=Path(model)),
            clean=CleanConfig(preset="none"),
            min_characters=1,
            validation_fraction=0.0,
            test_fraction=0.0,
            part_bytes=max(65_536, source.stat().st_size // 8),
        )
        plan = make_plan(config, fingerprint_of(config))
        plan.directory.mkdir()
        write_plan(plan)
        sizes: list[tuple[int, int]] = []
        with Pool(plan, workers) as pool:
            pool.run([["spool", part.number] for part in plan.parts], lambda *_: None)
            ranges = range_count(plan, spool_totals(plan))
            make_overlaps(plan, ranges)
            make_tokenizer(plan, ranges, lambda *_: None)
            with Meter() as meter:
                pool.run([["encode", n, ranges] for n in range(ranges)], lambda *size: sizes.append(size))
        items, bytes_ = (sum(column) for column in zip(*sizes, strict=True))
        return {"wall_s": meter.wall_s, "cpu_s": meter.cpu_s, "items": items, "bytes": bytes_, "ranges": ranges}


def compare(documents: str, model: str) -> dict[str, Any]:
    """Count the documents whose ids are not those of SentencePiece's `EncodeAsIds` of the whole document.

    A document with U+2581, which SentencePiece cannot tell from a space, is compared by its parts between them; how
    many there are is told.
    """
    from sentencepiece import SentencePieceProcessor

    tokenizer, library = load_tokenizer(model), SentencePieceProcessor(model_file=model)
    texts, differing, marked = share(documents), 0, 0
    for text in texts:
        if _SPACE in text:
            marked += 1
            differing += tokenizer.encode(text) != tokenizer.encode_plain(text).tolist()  # type: ignore[attr-defined]
        else:
            differing += tokenizer.encode(text) != library.EncodeAsIds(text)
    return {"documents": len(texts), "differing": differing, "with_space_mark": marked}
