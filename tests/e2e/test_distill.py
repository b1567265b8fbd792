"""A Transformer becomes a hedgehog in three runs of `pha train`, stopped and resumed on the way."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from pretrain.checkpoint import newest
from pretrain.files import sha256
from tests.e2e.runs import CONFIG, pha, start, training, validation, wait_for, write_config

DISTIL = ("model.preset=hedgehog-nano", "train.objective=distill", "optim.lr=1e-2")


@pytest.fixture(scope="module")
def teacher(tiny_dataset, tmp_path_factory):
    """A config and a run of a few steps."""
    folder = tmp_path_factory.mktemp("teacher")
    run = folder / "run"
    config = write_config(folder, tiny_dataset, run, CONFIG.replace("pha-nano", "transformer-nano"))
    assert start(run, config, ranks=1).wait() == 0
    return config, run


def weights(run):
    return load_file(newest(run / "checkpoints").weights)


def test_distil_kill_resume_and_fine_tune(teacher, tmp_path):
    config, teacher_run = teacher
    whole, killed, tuned = (tmp_path / name for name in ("whole", "killed", "tuned"))
    settings = (config, *DISTIL, f"train.init_from={teacher_run}")
    assert start(whole, *settings, f"run_dir={whole}").wait() == 0
    theirs = {name.replace("attention.", "hedgehog."): value for name, value in weights(teacher_run).items()}
    ours = weights(whole)
    assert {name for name in ours if "_map." not in name} == set(theirs)
    assert all(ours[name].equal(value) for name, value in theirs.items()), "only the maps learn"
    assert training(whole)[1][0] < 3.5 < validation(whole)[6], "trained on the mismatch, validated on the text"

    with start(killed, *settings, f"run_dir={killed}") as job:
        # A checkpoint is published beside the training, which may be steps further when the disk is slow.
        wait_for(job, lambda: 6 in training(killed) and any((killed / "checkpoints").glob("step-*")))
        job.kill()
    moved = teacher_run.with_name("moved")
    teacher_run.rename(moved)  # a resume needs the teacher no more
    try:
        assert start(killed, *settings, f"run_dir={killed}").wait() == 0
    finally:
        moved.rename(teacher_run)
    assert training(killed) == training(whole)
    assert sha256(newest(killed / "checkpoints").weights) == sha256(newest(whole / "checkpoints").weights)

    objective = ("model.preset=hedgehog-nano", f"train.init_from={whole}", f"run_dir={tuned}", "train.zero_stage=3")
    assert start(tuned, config, *objective, ranks=1).wait() == 0
    curve = training(tuned)
    assert curve[14][0] < curve[1][0] and validation(tuned)[14] < validation(whole)[14]
    assert not weights(tuned)["norm.weight"].equal(theirs["norm.weight"]), "all weights are tuned"


def test_weights_that_do_not_fit_are_one_sentence(teacher, tmp_path):
    config, run = teacher
    done = pha("train", config, f"run_dir={tmp_path / 'run'}", f"train.init_from={run}", "model.n_layers=3")
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert "do not fit the model: blocks.2." in done.stderr and len(done.stderr.strip().splitlines()) == 1
