"""The drills, small: `make drills` has them at full size."""

from __future__ import annotations

import json
import shutil

import pytest

from pretrain.checkpoint import CheckpointStore
from tests.conftest import build_tiny_dataset
from tests.drills import bytes as harms
from tests.drills import kills, ledger


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    return folder, kills.drill(folder, build_tiny_dataset(folder / "small", kills.TOPICS), 4, seed=1, longest_s=8)


def test_kills_change_nothing(killed):
    _, found = killed
    assert found.kills == 4 and sum(found.phases.values()) == 4
    assert found.failed_restarts == 0 and found.different == []
    assert found.epochs > 1, "the ledger is audited over whole epochs"


def test_the_ledger_misses_nothing(killed, tmp_path):
    """What is lost, given twice or changed in a ledger is told."""
    folder, _ = killed
    own = shutil.copytree(folder / "reference" / "ledger", tmp_path / "ledger")
    path = own / "rank-1.jsonl"
    lines = path.read_text().splitlines(keepends=True)

    def problems(*changed: str) -> list[str]:
        path.write_text("".join(changed))
        epoch = round(kills.STEPS * kills.BATCH / killed[1].epochs)
        return ledger.problems(own, folder / "small" / "dataset", kills.STEPS, kills.BATCH, epoch)

    assert problems(*lines) == []
    assert "exactly once" in problems(*lines[:7], *lines[8:])[0]
    step, rows, mark = json.loads(lines[3])
    rows[next(iter(rows))][5] += 1
    assert "epoch 0" in problems(*lines[:3], json.dumps([step, rows, mark]) + "\n", *lines[4:])[0]


def test_harm_to_a_checkpoint_is_noticed(killed, tmp_path):
    folder, _ = killed
    assert len(CheckpointStore(folder / "reference" / "checkpoints").all()) == 2
    found = harms.checkpoints(folder / "reference", tmp_path, 60)
    assert (found.done, found.noticed, found.missed) == (60, 60, [])


def test_harm_to_a_shard_is_noticed_or_harmless(tiny_dataset, tmp_path):
    found = harms.shards(tiny_dataset, tmp_path, 60)
    assert found.done == 60 and found.missed == [] and found.noticed > 30
