"""Generations of a run: each start has its own number, and only the newest may publish."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from pretrain.checkpoint import CheckpointStore
from pretrain.errors import EXIT_OVERTAKEN, Overtaken
from pretrain.fence import Fence
from tests.pretrain.test_checkpoint import info


def test_each_start_is_a_generation_and_overtakes_those_before(tmp_path):
    first = Fence.rise(tmp_path / "generations")
    first.check()
    second = Fence.rise(tmp_path / "generations")
    assert (first.generation, second.generation) == (1, 2)
    second.check()
    with pytest.raises(Overtaken, match=r"start 1 of the run .* started again since \(start 2\)") as caught:
        first.check()
    assert caught.value.exit_code == EXIT_OVERTAKEN


def _rise(folder: str, barrier, results) -> None:
    barrier.wait()
    results.put(Fence.rise(Path(folder)).generation)


def test_starts_at_the_same_moment_have_different_numbers_without_gaps(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_rise, args=(str(tmp_path), barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert found == [1, 2, 3, 4]


def _write(store: CheckpointStore, step: int) -> None:
    (store.begin(step) / "model.safetensors").write_bytes(b"weights")


def test_an_old_generation_can_neither_commit_nor_spoil_what_the_new_one_writes(tmp_path):
    old = CheckpointStore(tmp_path / "checkpoints", None, Fence.rise(tmp_path / "generations"))
    _write(old, 10)
    new = CheckpointStore(tmp_path / "checkpoints", None, Fence.rise(tmp_path / "generations"))
    _write(new, 10)
    assert old.pending(10) != new.pending(10)
    with pytest.raises((Overtaken, OSError)):
        old.commit(10, info(10))
    assert new.all() == []
    assert new.commit(10, info(10)).problems() == []
    assert [c.step for c in new.all()] == [10]


def test_an_old_generation_that_begins_late_leaves_the_new_ones_files_alone(tmp_path):
    old = CheckpointStore(tmp_path / "checkpoints", None, Fence.rise(tmp_path / "generations"))
    new = CheckpointStore(tmp_path / "checkpoints", None, Fence.rise(tmp_path / "generations"))
    _write(new, 10)
    with pytest.raises(Overtaken):
        _write(old, 10)
    assert new.commit(10, info(10)).problems() == []
