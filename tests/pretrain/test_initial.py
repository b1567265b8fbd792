"""Weights of another run: what is checked before a run starts from them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model.distill import AttentionMatching
from model.lm import LanguageModel
from model.presets import preset
from pretrain import config_file
from pretrain.checkpoint import CheckpointStore
from pretrain.config import OptimConfig
from pretrain.errors import RunError
from pretrain.inference import weights_bytes
from pretrain.initial import Initial
from pretrain.optim import parameter_groups
from pretrain.rundir import RunDirectory
from pretrain.state import CheckpointInfo, TrainState


def nano(architecture: str, seed: int) -> LanguageModel:
    torch.manual_seed(seed)
    return LanguageModel(preset(f"{architecture}-nano").model_copy(update={"vocab_size": 64}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a Transformer's run with one checkpoint."""
    directory, model = RunDirectory(tmp_path / "teacher"), nano("transformer", 0)
    directory.create()
    tree = {"run_dir": str(directory.path), "model": model.config.model_dump(), "data": {"path": "d"}}
    directory.write(config_file.parse(tree, "test"))
    store = CheckpointStore(directory.checkpoints)
    (store.begin(3) / "model.safetensors").write_bytes(weights_bytes(model))
    hashes = dict.fromkeys(("config_hash", "dataset_hash", "tokenizer_hash"), "t")
    info = CheckpointInfo(state=TrainState(step=3), world_size=1, zero_stage=1, fingerprint=1.0, versions={}, **hashes)
    store.commit(3, info)
    return directory.path


def corpus(tokenizer: str = "t") -> SimpleNamespace:
    return SimpleNamespace(tokenizer_hash=tokenizer, path="d")


def test_the_newest_weights_arrive_bit_for_bit(run: Path) -> None:
    teacher, student, same = nano("transformer", 0), nano("hedgehog", 1), nano("transformer", 1)
    initial = Initial.find(run, corpus())
    initial.give_to(student)
    initial.give_to(same)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
        assert torch.equal(value, student.state_dict()[name.replace("attention", "hedgehog")])


def test_what_cannot_be_started_from_is_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="trained with another tokenizer than that of d"):
        Initial.find(run, corpus("another"))
    with pytest.raises(RunError, match="is not a run directory"):
        Initial.find(tmp_path / "nothing", corpus())
    next((run / "checkpoints").rglob("*.safetensors")).write_bytes(b"damaged")
    with pytest.raises(RunError, match="holds no complete checkpoint"):
        Initial.find(run, corpus())


def test_frozen_parameters_are_no_business_of_the_optimizer() -> None:
    model = nano("hedgehog", 0)
    AttentionMatching(model)
    (only,) = parameter_groups(model, OptimConfig())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert only["name"] == "no_decay" and all("_map." in names[id(parameter)] for parameter in only["params"])
    assert len(only["params"]) == 8
