"""What people get wrong, and what disks do: one sentence, a non-zero exit code, no traceback, nothing lost."""

from __future__ import annotations

import contextlib
import ctypes
import json
import resource
import shutil
import signal

import pytest

from pretrain.checkpoint import CheckpointStore, newest
from tests.conftest import write_corpus
from tests.e2e.runs import pha, training, write_config

ALONE = ("train.zero_stage=1", "train.micro_batch=null")


def fails_with(result, *words):
    """The command failed with one sentence that has these words."""
    assert result.returncode not in (0, None), result.stdout
    assert "Traceback" not in result.stderr, result.stderr
    sentence = next((line for line in result.stderr.splitlines() if line.startswith("error: ")), "")
    for word in words:
        assert word in sentence, result.stderr
    return sentence


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    """A short finished run on one rank, to be spoiled in copies."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder, tiny_dataset, folder / "run")
    assert pha("train", config, *ALONE, "train.steps=5").returncode == 0
    return folder / "run"


@pytest.fixture
def spoiled(tiny_dataset, tmp_path):
    """A copy of the dataset, to be damaged."""
    return shutil.copytree(tiny_dataset, tmp_path / "dataset")


def continue_run(trained, tmp_path, dataset, *overrides, **options):
    """Goes on with a copy of the trained run, to step 12, on this dataset."""
    run = shutil.copytree(trained, tmp_path / "run")
    config = write_config(tmp_path, dataset, run)
    return run, pha("train", config, *ALONE, "train.steps=12", *overrides, **options)


def test_config_mistakes(tmp_path, tiny_dataset):
    config = write_config(tmp_path, tiny_dataset, tmp_path / "run")
    fails_with(pha("train", config, "train.stepz=3"), "unknown key 'train.stepz', the nearest is 'train.steps'")
    fails_with(pha("train", config, "model.vocab_size=100"), "smaller than the vocabulary", "leave it out")
    fails_with(pha("train", config, "train.micro_batch=3"), "multiple of")
    fails_with(pha("info", "pha-125"), "pha-125m")
    fails_with(pha("report", tmp_path), "not a run directory")
    fails_with(pha("eval", tmp_path), "not a run directory")


def test_a_dataset_that_is_not_there(tmp_path):
    config = write_config(tmp_path, tmp_path / "nothing", tmp_path / "run")
    fails_with(pha("train", config), str(tmp_path / "nothing"), "pha data build")


def test_missing_and_truncated_shards(trained, tmp_path, spoiled):
    shard = sorted(spoiled.glob("train-*.tar"))[0]
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    run, result = continue_run(trained, tmp_path, spoiled)
    fails_with(result, shard.name)
    shard.unlink()
    fails_with(pha("train", tmp_path / "run.yaml", *ALONE), shard.name)
    assert newest(run / "checkpoints").step == 5, "nothing was lost"


def test_a_shard_that_rots_while_it_is_read(trained, tmp_path, spoiled):
    shard = sorted(spoiled.glob("train-*.tar"))[0]
    data = bytearray(shard.read_bytes())
    for place in range(700, len(data), 1536):  # the size stays: only the blocks' checksums can tell
        data[place] ^= 1
    shard.write_bytes(data)
    _, result = continue_run(trained, tmp_path, spoiled)
    fails_with(result, shard.name)


def test_another_dataset_and_another_tokenizer(trained, tmp_path, tiny_dataset):
    corpus = write_corpus(tmp_path / "less.jsonl", stop=40)
    build = ("data", "build", tmp_path / "other", corpus, "--validation", 0.05, "--test", 0.05)
    assert pha(*build, "--tokenizer", tiny_dataset / "tokenizer.model").returncode == 0
    run, result = continue_run(trained, tmp_path, tmp_path / "other")
    fails_with(result, str(tmp_path / "other"), "other text", "run_dir")
    shutil.rmtree(tmp_path / "other")
    assert pha(*build, "--vocab", 512).returncode == 0
    fails_with(pha("train", tmp_path / "run.yaml", *ALONE, "train.steps=12"), "another tokenizer")
    assert max(training(run)) == 5, "nothing was lost"


def test_corpora_that_cannot_work(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    fails_with(pha("data", "build", tmp_path / "d", empty), "empty.jsonl")
    small = write_corpus(tmp_path / "small.jsonl", stop=20)
    fails_with(pha("data", "build", tmp_path / "d", small, "--vocab", 60_000), "vocab")
    fails_with(pha("data", "build", tmp_path / "d", tmp_path / "missing.jsonl"), "missing.jsonl")
    fails_with(pha("data", "build", tmp_path / "d", small, "--validation", 0.7, "--test", 0.7))
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps({"text": "fine"}) + "\n{not json\n")
    fails_with(pha("data", "build", tmp_path / "d", broken), "broken.jsonl:2")
    assert not (tmp_path / "d").exists(), "no half dataset is left"
    assert not [p for p in tmp_path.iterdir() if p.is_dir()], "nor a temporary one"


def small_files_only():
    """A full disk, as seen by one process: files may not grow beyond 100 kB (EFBIG instead of ENOSPC)."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk_keeps_the_last_checkpoint(trained, tmp_path, tiny_dataset):
    run, result = continue_run(trained, tmp_path, tiny_dataset, preexec_fn=small_files_only)
    fails_with(result, "could not be written", "checkpoint of step 5 is whole", "free some space")
    assert [c.step for c in CheckpointStore(run / "checkpoints").all()] == [4, 5]
    assert not list((run / "checkpoints").glob(".writing-*"))
    assert pha("train", tmp_path / "run.yaml", *ALONE, "train.steps=6").returncode == 0, "with room, it goes on"
    assert newest(run / "checkpoints").step == 6


def test_a_full_disk_leaves_no_half_dataset(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    result = pha("data", "build", tmp_path / "d", corpus, "--vocab", 512, preexec_fn=small_files_only)
    fails_with(result)
    assert not (tmp_path / "d").exists()
    assert pha("data", "build", tmp_path / "d", corpus, "--vocab", 512).returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.jsonl", "d"]


def obey_permissions():
    """Root without the capability to overrule permissions (for other users nothing changes)."""
    with contextlib.suppress(OSError):
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP


def test_a_checkpoint_directory_without_permission(trained, tmp_path, tiny_dataset):
    run = shutil.copytree(trained, tmp_path / "run")
    config = write_config(tmp_path, tiny_dataset, run)
    (run / "checkpoints").chmod(0o500)
    result = pha("train", config, *ALONE, "train.steps=12", preexec_fn=obey_permissions)
    (run / "checkpoints").chmod(0o700)
    fails_with(result, "checkpoints", "Permission denied", "give this user the right")
    assert newest(run / "checkpoints").step == 5
