from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.batch import IGNORE, RowBatch, read_sequences
from data_pipeline.dataset import Dataset
from data_pipeline.stream import Stream
from pretrain.data import to_device

CPU = torch.device("cpu")
BOS = 1


@st.composite
def batches(draw):
    """Rows as a loader leaves them: text, then separators; some with gaps inside the text."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(2, 12))
    used = np.array(draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows)))
    seed = draw(st.integers(0, 999))
    tokens = np.random.default_rng(seed).integers(0, 4, (rows, width)).astype(draw(st.sampled_from(["<u2", "<u4"])))
    tokens[np.arange(width) >= used[:, None]] = BOS
    gaps = []
    for row, count in enumerate(used.tolist()):
        if count and draw(st.booleans()):
            start = draw(st.integers(0, count - 1))
            gaps.append((row, start, draw(st.integers(start + 1, count))))
    return RowBatch(0, tokens, used, BOS, gaps)


@given(batches())
def test_what_is_derived_on_the_device_is_what_the_arrays_say(batch):
    tokens, labels, documents = to_device(batch, CPU)
    assert tokens.dtype == labels.dtype == torch.int64
    assert documents.dtype == torch.int32
    assert np.array_equal(tokens, batch.tokens)
    assert np.array_equal(labels, batch.labels)
    assert np.array_equal(documents, batch.documents)
    assert batch.predictions == int((labels != IGNORE).sum())


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_batches_of_either_packing_arrive(tiny_dataset, packing):
    with Dataset.open(tiny_dataset) as dataset:
        stream = Stream({"a": dataset.split("train")}, seq_len=32, lanes=2, packing=packing)
        batch = read_sequences(stream, [0, 1, None, 2], 0)
        for tensor, name in zip(to_device(batch, CPU), ("tokens", "labels", "documents"), strict=True):
            assert tensor.shape == (4, 32)
            assert np.array_equal(tensor, getattr(batch, name))
        assert (batch.labels[2] == IGNORE).all()
