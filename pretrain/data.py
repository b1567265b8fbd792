"""Opens the data of a run as its config says."""

from __future__ import annotations

from data_pipeline.corpus import Corpus
from pretrain.config import DataConfig


def open_corpus(config: DataConfig) -> Corpus:
    """The dataset of `data.path` or those of `data.mixture`, with cache and policy. Raises DataError."""
    return Corpus.open(
        config.paths,
        cache_dir=config.cache_dir,
        cache_dir_bytes=config.cache_bytes,
        on_damage=config.on_damage,
    )
