from __future__ import annotations

from pathlib import Path

import pytest

from pretrain import config_file
from pretrain.config import DataConfig
from pretrain.errors import RunError

MINIMAL = "model: {preset: pha-nano}\ndata: {path: data/x}\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_defaults_preset_and_overrides_make_the_tree(write):
    config = config_file.load(write(MINIMAL), ["train.steps=7", "optim.lr=1e-4", "model.dropout=0.2"])
    assert config.run_dir == Path("runs/run")
    assert (config.train.steps, config.optim.lr, config.model.dropout) == (7, 1e-4, 0.2)
    assert config.model.d_model == 32
    assert config.lanes == config.train.global_batch


def test_dump_holds_every_value_and_parses_back(write):
    config = config_file.load(write(MINIMAL), ["train.recompute.mode=full", "deepspeed.fp16.enabled=false"])
    path = write(config_file.dump(config), "again.yaml")
    assert config_file.load(path) == config


def test_a_parent_is_extended_and_a_new_preset_replaces_its_model(write):
    write(MINIMAL + "train: {steps: 5, seed: 3}\n", "parent.yaml")
    child = write("extends: parent.yaml\nmodel: {preset: pha-tiny}\ntrain: {steps: 6}\n", "child.yaml")
    config = config_file.load(child)
    assert (config.train.steps, config.train.seed, config.model.d_model) == (6, 3, 128)
    with pytest.raises(RunError, match="may not extend again"):
        config_file.load(write("extends: child.yaml\n", "grandchild.yaml"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stpes=3", r"unknown key 'train\.stpes', the nearest is 'train\.steps'"),
        ("optim.schedule.kid=cosine", r"the nearest is 'optim\.schedule\.kind'"),
        ("trian.steps=3", r"unknown key 'trian', the nearest is 'train'"),
        ("model.d_modle=3", r"the nearest is 'model\.d_model'"),
        ("model.gss.expantion=3", r"the nearest is 'model\.gss\.expansion'"),
        ("train.steps=many", r"'train\.steps' is 'many'"),
        ("train.steps=0", r"'train\.steps' is 0: .*greater than or equal to 1"),
        ("train.zero_stage=4", r"'train\.zero_stage' is 4"),
        ("train.micro_batch=5", r"train\.global_batch \(24\) must be a multiple of train\.micro_batch \(5\)"),
        ("model.preset=pha-tny", "Did you mean 'pha-tiny'"),
        ("train.objective=distill", "needs a model of architecture hedgehog, and train.init_from with the run"),
        ("train.steps", "must look like key.sub=value"),
        ("run_dir.x=1", "looks inside 'run_dir', which holds a plain value"),
        ("train.steps={", "not valid YAML"),
    ],
)
def test_bad_values_are_one_sentence(write, override, message):
    path = write(MINIMAL + "run_dir: runs/x\n")
    with pytest.raises(RunError, match=message) as caught:
        config_file.load(path, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", "line 1 is not valid YAML"),
        ("- 1\n", "must hold a mapping of sections"),
        ("model: {preset: pha-nano}\n", "'data' is missing"),
        (
            "model: {preset: hedgehog-nano}\ndata: {path: x}\n"
            "train: {objective: distill, init_from: x, recompute: {mode: full}}\n",
            r"train\.recompute must be none when train\.objective is distill",
        ),
    ],
)
def test_bad_files_are_one_sentence(write, text, message):
    with pytest.raises(RunError, match=message):
        config_file.load(write(text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RunError, match=r"Cannot read the config .*nothing\.yaml"):
        config_file.load(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).resolve().parents[2].glob("configs/*.yaml")), ids=lambda p: p.stem
)
def test_every_shipped_config_is_valid(path):
    config = config_file.load(path)
    assert config.train.steps > 0


@pytest.mark.parametrize("given", ["data/x", "s3://bucket/corpus", "https://host/corpus", "file:///data/x"])
def test_the_dataset_is_a_path_or_a_url_that_survives_the_file(given):
    data = DataConfig(path=given)
    assert data.path == (given if "://" in given else Path(given))
    assert DataConfig.model_validate(data.model_dump(mode="json")) == data
