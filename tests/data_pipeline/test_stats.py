from __future__ import annotations

import json

import numpy as np
import pytest

from data_pipeline.stats import stats, token_counts


def test_figures_add_up(built, dataset):
    found = json.loads(json.dumps(stats(built)))
    assert found["hash"] == dataset.hash
    assert found["report"]["documents_kept"] == 400
    assert list(found["splits"]) == ["train", "validation", "test"]
    for name, figures in found["splits"].items():
        split = dataset.split(name)
        everything = np.concatenate([split.read_block(b) for b in range(len(split.blocks))])
        assert figures["tokens"] == len(everything)
        assert figures["vocabulary_used"] == len(np.unique(everything))
        assert figures["bytes_per_token"] == pytest.approx(split.bytes / len(everything))
        assert figures["shard_bytes"] == sum((built / s.name).stat().st_size for s in split.info.shards)
        assert figures["tar_overhead"] == pytest.approx(figures["shard_bytes"] / (2 * len(everything)) - 1)
        assert token_counts(split, 600).sum() == len(everything)
