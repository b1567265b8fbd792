"""The mean of weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from pretrain.average import mean_weights
from pretrain.errors import RunError


def test_each_weight_is_the_mean_over_the_files_in_its_dtype(tmp_path):
    states = [{"a": torch.full((2, 3), float(i)), "b": torch.tensor([10.0**8 + i])} for i in range(3)]
    for i, state in enumerate(states):
        save_file(state, tmp_path / f"{i}.safetensors")
    mean = mean_weights([tmp_path / f"{i}.safetensors" for i in range(3)])
    assert torch.equal(mean["a"], torch.ones(2, 3)) and mean["a"].dtype == torch.float32
    wide = torch.stack([state["b"].double() for state in states]).mean(0)
    assert torch.equal(mean["b"], wide.float())


def test_weights_of_different_models_are_refused(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "0.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "1.safetensors")
    with pytest.raises(RunError, match="different models"):
        mean_weights([tmp_path / "0.safetensors", tmp_path / "1.safetensors"])
