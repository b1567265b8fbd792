"""What is fixed, and when Python collects its garbage."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from data_pipeline.corpus import Corpus
from data_pipeline.loader import Loader
from pretrain.determinism import Collector, settle


@pytest.fixture(autouse=True)
def _restore():
    yield
    gc.unfreeze()
    gc.enable()
    torch.use_deterministic_algorithms(False)


def test_settle():
    settle(True)
    assert torch.are_deterministic_algorithms_enabled()
    settle(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_garbage_is_collected_at_the_chosen_steps_only(monkeypatch):
    collector = Collector(3)
    assert not gc.isenabled()
    found = []
    monkeypatch.setattr(gc, "collect", lambda: found.append(1))
    counts = []
    for step in range(1, 8):
        collector.step(step)
        counts.append(len(found))
    assert counts == [0, 0, 1, 1, 1, 2, 2]
    collector.close()
    assert gc.isenabled()


def test_zero_leaves_it_to_python():
    collector = Collector(0)
    assert gc.isenabled()
    collector.step(0)
    collector.close()


def test_reading_data_leaves_the_global_generators_alone(tiny_dataset):
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes()
    corpus = Corpus.open({"data": tiny_dataset})
    with Loader(corpus.splits("train")["data"], seq_len=32, global_batch=4) as loader:
        for _ in range(20):
            next(loader)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tobytes() == before[1]
