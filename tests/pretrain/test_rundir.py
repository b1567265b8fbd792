from __future__ import annotations

import os

import pytest

from pretrain import config_file
from pretrain.errors import RunError
from pretrain.rundir import RunDirectory, config_hash


def run(path, **tree):
    base = {"run_dir": str(path), "model": {"preset": "pha-nano", "vocab_size": 64}, "data": {"path": "d"}}
    return config_file.parse({**base, **tree}, "test")


@pytest.fixture
def directory(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    return directory


def test_the_resolved_config_is_frozen_and_read_back(directory):
    config = run(directory.path)
    directory.check(config)
    directory.write(config)
    assert directory.read_config() == config
    longer = run(directory.path, train={"steps": 5000})
    directory.check(longer)
    directory.write(longer)
    assert directory.read_config().train.steps == 5000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"preset": "pha-nano", "vocab_size": 65}}, r"model\.vocab_size was 64 and is now 65"),
        ({"data": {"path": "d", "seq_len": 7}}, r"data\.seq_len was 1024 and is now 7"),
        ({"train": {"seed": 1}}, r"train\.seed was 0 and is now 1"),
    ],
)
def test_what_must_not_change_is_named(directory, change, words):
    directory.write(run(directory.path))
    with pytest.raises(RunError, match=words):
        directory.check(run(directory.path, **change))


def test_what_the_data_will_decide_is_not_compared_before_it_has(directory):
    directory.write(run(directory.path, data={"path": "d", "lanes": 8}))
    unsettled = run(directory.path, model={"preset": "pha-nano"})
    directory.check(unsettled, settled=False)
    with pytest.raises(RunError, match=r"model\.vocab_size was 64 and is now None"):
        directory.check(unsettled)
    with pytest.raises(RunError, match=r"train\.seed was 0 and is now 1"):
        directory.check(run(directory.path, train={"seed": 1}), settled=False)


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match=r"not a run directory"):
        RunDirectory(tmp_path).read_config()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(RunError, match="Cannot write in the run directory"):
        RunDirectory(blocked / "run").create()


@pytest.fixture
def ordinary_user():
    """Root may write everywhere, so as root the test becomes nobody for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


def test_a_folder_without_permission_is_one_sentence(tmp_path, ordinary_user):
    if os.geteuid() != 65534:
        tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="give this user the right"):
        RunDirectory(tmp_path / "run").create()


def test_the_hash_follows_what_decides_the_weights(tmp_path):
    base = config_hash(run(tmp_path))
    assert base == config_hash(run(tmp_path / "elsewhere", logging={"every": 3}))
    assert base != config_hash(run(tmp_path, train={"seed": 9}))


def test_a_run_is_trained_by_one_process_at_a_time(directory):
    refused = pytest.raises(RunError, match="Another process is training the run")
    with directory.locked(), refused, directory.locked():
        pass
    with directory.locked():
        pass


def test_a_supervisor_that_knows_the_other_one_lost_takes_its_place(tmp_path, monkeypatch, caplog):
    (directory := RunDirectory(tmp_path / "run")).create()
    with directory.locked():
        monkeypatch.setenv("PHA_TAKE_OVER", "1")
        with directory.locked():
            assert "can publish nothing more" in caplog.text
