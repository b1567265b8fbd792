"""SentencePiece alone, and Hugging Face `datasets.map` around a SentencePiece model or a fast `tokenizers` BPE."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.data.measure import Meter
from benchmarks.data.pair import Job, share

Batch = dict[str, list[Any]]


def prepare(documents: str, model: str, part: int = 0, parts: int = 1) -> Job:
    """`EncodeAsIds` of whole documents, as plain lists of ids."""
    from sentencepiece import SentencePieceProcessor

    texts, processor = share(documents, part, parts), SentencePieceProcessor(model_file=model)
    return Job(
        lambda: sum(len(processor.EncodeAsIds(text)) for text in texts),
        sum(len(text.encode("utf-8")) for text in texts),
    )


def measure_datasets(documents: str, model: str, kind: str, processes: int) -> dict[str, Any]:
    """`datasets.map(batched=True)` over an Arrow file of the texts, which writes an Arrow file of uint16 ids.

    Args:
        documents: a JSON file of texts.
        model: of SentencePiece or `tokenizers`, by `kind` (``sentencepiece`` or ``fast``).
        processes: `num_proc`; the processes' start belongs to the measured part, as every call of map pays it.
    """
    import datasets

    datasets.disable_progress_bars()
    texts = share(documents)
    with tempfile.TemporaryDirectory(prefix="pha-bench-", dir=Path(documents).parent) as directory:
        datasets.Dataset.from_dict({"text": texts}).save_to_disk(f"{directory}/texts")
        dataset = datasets.load_from_disk(f"{directory}/texts")
        encode = _sentencepiece(model) if kind == "sentencepiece" else _fast(model)
        with Meter() as meter:
            encoded = dataset.map(
                encode,
                batched=True,
                num_proc=processes if processes > 1 else None,
                remove_columns=["text"],
                features=datasets.Features({"ids": datasets.Sequence(datasets.Value("uint16"))}),
                load_from_cache_file=False,
                cache_file_name=f"{directory}/ids.arrow",
            )
        tokens = sum(len(ids) for ids in encoded.with_format("arrow")["ids"])
    bytes_ = sum(len(text.encode("utf-8")) for text in texts)
    return {"wall_s": meter.wall_s, "cpu_s": meter.cpu_s, "items": tokens, "bytes": bytes_, "rows": len(encoded)}


def _sentencepiece(model: str) -> Callable[[Batch], Batch]:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=model)
    return lambda batch: {"ids": [processor.EncodeAsIds(text) for text in batch["text"]]}


def _fast(model: str) -> Callable[[Batch], Batch]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(model)
    return lambda batch: {"ids": [found.ids for found in tokenizer.encode_batch_fast(batch["text"])]}


def train_fast(documents: str, model: str, vocabulary: int) -> dict[str, Any]:
    """Train a byte-level BPE of GPT-2's kind on the documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(share(documents), trainer)
    tokenizer.save(model)
    return {"pieces": tokenizer.get_vocab_size()}
