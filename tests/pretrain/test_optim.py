from __future__ import annotations

from model.lm import LanguageModel
from model.presets import preset
from pretrain.config import OptimConfig
from pretrain.optim import parameter_groups


def test_matrices_decay_and_the_rest_does_not():
    model = LanguageModel(preset("pha-nano").model_copy(update={"vocab_size": 64}))
    decay, rest = parameter_groups(model, OptimConfig(weight_decay=0.3))
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert all(p.ndim == 2 for p in decay["params"])
    every = [id(p) for group in (decay, rest) for p in group["params"]]
    assert len(every) == len(set(every)) == len(list(model.parameters()))
