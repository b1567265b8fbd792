"""The drills, small: `make drills` has them at full size."""

from __future__ import annotations

import pytest

from pretrain.checkpoint import CheckpointStore
from tests.drills import bytes as harms
from tests.drills import kills


@pytest.fixture(scope="module")
def killed(tiny_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    return folder, kills.drill(folder, tiny_dataset, 4, seed=1, longest_s=8)


def test_kills_change_nothing(killed):
    _, found = killed
    assert found.kills == 4 and sum(found.phases.values()) == 4
    assert found.failed_restarts == 0 and found.different == []


def test_harm_to_a_checkpoint_is_noticed(killed, tmp_path):
    folder, _ = killed
    assert len(CheckpointStore(folder / "reference" / "checkpoints").all()) == 2
    found = harms.checkpoints(folder / "reference", tmp_path, 60)
    assert (found.done, found.noticed, found.missed) == (60, 60, [])


def test_harm_to_a_shard_is_noticed_or_harmless(tiny_dataset, tmp_path):
    found = harms.shards(tiny_dataset, tmp_path, 60)
    assert found.done == 60 and found.missed == [] and found.noticed > 30
