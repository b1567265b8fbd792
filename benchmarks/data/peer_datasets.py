"""Hugging Face datasets: an Arrow dataset, permuted as a whole, or streamed with a shuffle buffer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import torch

from benchmarks.data.driver import drive, whole_rows
from benchmarks.data.stream import BATCH, SHARD, load

#: Sequences in the shuffle buffer.
BUFFER = 1_024


class ArrowReader:
    """`form` map: `Dataset.shuffle`, resumed by `skip`; iterable: `to_iterable_dataset().shuffle`, with its state."""

    def __init__(self, path: str, length: int, form: str) -> None:
        self._path, self._length, self._form = path, length, form

    def open(self) -> None:
        """Open the dataset."""
        self._dataset = datasets.load_from_disk(self._path)
        if self._form == "iterable":
            shards = max(1, len(self._dataset) // SHARD)
            streamed = self._dataset.to_iterable_dataset(num_shards=shards)
            self._stream = streamed.shuffle(seed=0, buffer_size=BUFFER).with_format("torch")

    def batches(self, state: Any) -> Iterator[torch.Tensor]:
        """Batches of the rest of the epoch."""
        if self._form == "iterable":
            if state is not None:
                self._stream.load_state_dict(state)
            source = self._stream
        else:
            source = self._dataset.shuffle(seed=0, keep_in_memory=True).with_format("torch")
            if state is not None:
                source = source.skip(int(state["samples"]))
        for batch in source.iter(batch_size=BATCH, drop_last_batch=True):
            yield batch["tokens"]

    def state(self, consumed: int) -> Any:
        """Its own state, or how many sequences to skip."""
        return self._stream.state_dict() if self._form == "iterable" else {"samples": consumed * BATCH}

    inputs = staticmethod(whole_rows)


def read(path: str, length: int, form: str, mode: str, **options: Any) -> dict[str, Any]:
    """See :func:`benchmarks.data.driver.drive`."""
    return drive(ArrowReader(path, length, form), mode, **options)


def write(stream: str, path: str, length: int) -> dict[str, Any]:
    """Write the stream as an Arrow dataset with a column of fixed length. Raises OSError."""
    import pyarrow

    rows = load(stream, length)
    datasets.disable_progress_bars()
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("uint16"), length=length)})
    values = pyarrow.array(np.asarray(rows).ravel())
    table = pyarrow.table({"tokens": pyarrow.FixedSizeListArray.from_arrays(values, length)})
    datasets.Dataset(table.combine_chunks(), info=datasets.DatasetInfo(features=features)).save_to_disk(path)
    return {"sequences": len(rows)}
