"""Opens the dataset of a run as its config says."""

from __future__ import annotations

from data_pipeline.dataset import Dataset
from pretrain.config import DataConfig


def open_dataset(config: DataConfig) -> Dataset:
    """The dataset of `data.path`, a directory or a URL, with its cache and policy. Raises DataError with a sentence."""
    return Dataset.open(
        config.path,
        cache_dir=config.cache_dir,
        cache_dir_bytes=config.cache_bytes,
        on_damage=config.on_damage,
    )
