from __future__ import annotations

import json
import logging

import pytest

from pretrain.checkpoint import MANIFEST, MARKER, Checkpoint, CheckpointStore, newest, step_of
from pretrain.config import CheckpointConfig
from pretrain.errors import RunError
from pretrain.files import sha256
from pretrain.state import CheckpointInfo, TrainState


def info(step=0):
    return CheckpointInfo(
        state=TrainState(step=step),
        world_size=1,
        zero_stage=1,
        config_hash="c",
        dataset_hash="d",
        tokenizer_hash="t",
        fingerprint=1.5,
        versions={},
    )


def save(store, step):
    folder = store.begin(step)
    (folder / "zero").mkdir()
    (folder / "zero" / "optimizer.pt").write_bytes(bytes(range(256)) * 8)
    (folder / "model.safetensors").write_bytes(b"weights %d" % step)
    return store.commit(step, info(step))


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path, CheckpointConfig(keep=2))


def test_what_is_committed_verifies_and_is_found(store):
    assert store.latest() is None
    save(store, 10)
    checkpoint = save(store, 20)
    assert checkpoint.problems() == []
    assert store.latest() == checkpoint
    assert checkpoint.info().state.step == checkpoint.step == 20
    names = json.loads((checkpoint.path / MANIFEST).read_text())
    assert set(names) == {"zero/optimizer.pt", "model.safetensors", "state.json"}


def test_only_the_newest_are_kept(store):
    for step in (1, 2, 3, 4):
        save(store, step)
    assert [c.step for c in store.all()] == [3, 4]


def _truncate(path):
    file = path / "zero" / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-1])


def _flip_a_bit(path):
    file = path / "zero" / "optimizer.pt"
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data)


def _edit_manifest(path):
    manifest = json.loads((path / MANIFEST).read_text())
    manifest.pop("zero/optimizer.pt")
    (path / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_truncate, "2047 bytes instead of 2048"),
        (_flip_a_bit, "another SHA-256"),
        (lambda p: (p / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda p: (p / MARKER).unlink(), "never completed"),
        (_edit_manifest, "not the one that was committed"),
    ],
)
def test_damage_is_named_skipped_and_kept(store, caplog, damage, words):
    older = save(store, 10)
    damaged = save(store, 20)
    damage(damaged.path)
    with caplog.at_level(logging.WARNING):
        assert store.latest() == older
    assert words in caplog.text
    assert "step-00000020" in caplog.text
    assert (store.directory / "step-00000020.damaged-1").is_dir()
    assert save(store, 20).problems() == [], "the step can be written again"


def test_a_run_whose_every_checkpoint_is_damaged_does_not_start_anew(store):
    for step in (10, 20):
        _flip_a_bit(save(store, step).path)
    for _ in range(2):  # asking again does not change the answer
        with pytest.raises(RunError, match=r"Every checkpoint .* is damaged: step-00000020 .*step-00000010"):
            store.latest()


def test_an_attempt_that_died_leaves_nothing_that_counts(store):
    save(store, 10)
    folder = store.begin(20)
    (folder / "half").write_bytes(b"x")
    assert store.latest().step == 10
    store.begin(30)
    assert not folder.exists()
    store.abandon(30)
    assert [p.name for p in store.directory.iterdir()] == ["step-00000010"]


def test_readers_do_not_touch_damaged_checkpoints(store):
    save(store, 10)
    damaged = save(store, 20)
    _flip_a_bit(damaged.path)
    assert newest(store.directory).step == 10
    assert damaged.path.is_dir()


def test_no_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match="holds no complete checkpoint"):
        newest(tmp_path)
    with pytest.raises(RunError, match="names look like step-00001000"):
        step_of(tmp_path)
    with pytest.raises(RunError, match=r"no readable state\.json"):
        Checkpoint(tmp_path).info()


def elastic(store, checkpoint):
    (store.begin_elastic(checkpoint) / "optimizer.safetensors").write_bytes(b"moments of %d" % checkpoint.step)
    return store.commit_elastic(checkpoint)


def test_what_was_made_for_other_ranks_is_kept_verified_and_goes_with_its_checkpoint(store):
    checkpoint = save(store, 10)
    assert store.elastic(checkpoint) is None
    kept = elastic(store, checkpoint)
    assert store.elastic(checkpoint) == kept
    assert [c.step for c in store.all()] == [10] and store.latest() == checkpoint
    save(store, 20)
    save(store, 30)
    assert not kept.exists() and [c.step for c in store.all()] == [20, 30]


def test_what_was_made_for_other_ranks_is_made_again_when_damaged_or_of_another_checkpoint(store, caplog):
    checkpoint = save(store, 10)
    kept = elastic(store, checkpoint)
    (kept / "optimizer.safetensors").write_bytes(b"moments of 11")
    with caplog.at_level(logging.WARNING):
        assert store.elastic(checkpoint) is None
    assert "another SHA-256" in caplog.text
    elastic(store, checkpoint)
    (checkpoint.path / MARKER).write_text("another attempt at this step\n")
    with caplog.at_level(logging.WARNING):
        assert store.elastic(checkpoint) is None
    assert "belongs to another checkpoint" in caplog.text


def test_a_conversion_that_died_leaves_nothing_in_the_way(store):
    checkpoint = save(store, 10)
    (store.begin_elastic(checkpoint) / "half").write_bytes(b"x")
    assert store.elastic(checkpoint) is None and store.latest() == checkpoint
    kept = elastic(store, checkpoint)
    assert not (kept / "half").exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "zero/../../outside"])
def test_a_manifest_cannot_point_outside(store, tmp_path, name):
    checkpoint = save(store, 10)
    (tmp_path / "outside").write_bytes(b"x")
    (checkpoint.path / MANIFEST).write_text(json.dumps({name: {"bytes": 1, "sha256": sha256(tmp_path / "outside")}}))
    (checkpoint.path / MARKER).write_text(sha256(checkpoint.path / MANIFEST))
    assert checkpoint.problems() == [f"{name} is not a place in it"]


def test_a_kill_between_the_two_renames_loses_nothing(store):
    save(store, 10)
    again = save(store, 20)
    again.path.rename(again.path.with_name("step-00000020.superseded-1"))
    assert store.latest() == again
    assert again.problems() == []


def test_fewer_files_than_were_written_are_no_checkpoint(store):
    (store.begin(10) / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(OSError, match="1 of 3 files are seen"):
        store.commit(10, info(10), written=3)
    assert store.all() == []
