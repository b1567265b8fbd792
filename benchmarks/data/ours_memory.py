"""The resident memory of our loader over very many batches."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.data.measure import resident_mib
from data_pipeline.dataset import Dataset
from data_pipeline.loader import Loader


def measure(path: str, length: int, batch: int, cache_bytes: int, stops: list[int]) -> dict[str, Any]:
    """Read batches with prefetch, shuffled, and note the memory (MiB) after each number of batches in `stops`.

    The cache holds less than the dataset, so that blocks come and go all the time. Raises DataError.
    """
    started = time.perf_counter()
    readings: dict[str, float] = {}
    with Dataset.open(Path(path), cache_bytes=cache_bytes) as dataset:
        split = dataset.split("train")
        with Loader(split, seq_len=length, global_batch=batch, prefetch=2) as loader:
            for number in range(1, max(stops) + 1):
                next(loader)
                if number in stops:
                    readings[str(number)] = resident_mib()
            epochs = loader.sequences_consumed / loader.order.sequences_per_epoch
    return {"rss_mib": readings, "epochs": epochs, "wall_s": time.perf_counter() - started}
