"""Opens the data of a run as its config says, and brings its batches to the device."""

from __future__ import annotations

import torch
from torch import Tensor

from data_pipeline.batch import IGNORE, Batch, RowBatch
from data_pipeline.corpus import Corpus
from pretrain.config import DataConfig, RunConfig
from pretrain.errors import RunError


def open_corpus(config: DataConfig) -> Corpus:
    """The dataset of `data.path` or those of `data.mixture`, with cache and policy. Raises DataError."""
    return Corpus.open(
        config.paths,
        cache_dir=config.cache_dir,
        cache_dir_bytes=config.cache_bytes,
        on_damage=config.on_damage,
    )


def resolve(config: RunConfig, dataset: Corpus, lanes: int | None = None) -> RunConfig:
    """The config with the dataset's vocabulary and the lanes: those given, of the run's first start, or by the batch.

    Raises RunError if vocabulary or schedule do not fit the dataset.
    """
    vocab = config.model.vocab_size or dataset.vocab_size
    if vocab < dataset.vocab_size:
        raise RunError(
            f"model.vocab_size ({vocab}) is smaller than the vocabulary of the data "
            f"({dataset.vocab_size}); leave it out to take the dataset's."
        )
    if config.optim.schedule.kind == "plateau" and "validation" not in dataset.split_names:
        raise RunError(
            f"The plateau schedule needs validation losses, but {config.data.path} has no validation split; build it "
            "with one, or choose optim.schedule.kind=cosine."
        )
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"vocab_size": vocab}),
            "data": config.data.model_copy(update={"lanes": config.data.lanes or lanes or config.lanes}),
        }
    )


def to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, labels, documents) of a batch, [B, T] on the device: int64, int64 and int32.

    Rows go over as they are stored, a tenth of the bytes, and are taken apart there.
    """
    if not isinstance(batch, RowBatch):
        arrays = (batch.tokens, batch.labels, batch.documents)
        tokens, labels, documents = (torch.from_numpy(a).to(device, non_blocking=True) for a in arrays)
        return tokens, labels, documents
    rows = torch.from_numpy(batch.rows).to(device, non_blocking=True).to(torch.int64)
    tokens, labels = rows[:, :-1].clone(), rows[:, 1:].clone()  # never views of the same memory
    begins = tokens == batch.bos_id
    begins[:, 0] = False
    documents = begins.cumsum(1, dtype=torch.int32)
    length = tokens.shape[1]
    for b, used in enumerate(batch.used.tolist()):
        if used <= length:  # what follows the text is padding, a document of its own
            labels[b, max(0, used - 1) :] = IGNORE
            documents[b, used:] = documents[b, used - 1] + 1 if used else 0
    for b, start, stop in batch.gaps:
        labels[b, max(0, start - 1) : stop] = IGNORE
    return tokens, labels, documents
