"""The parallel hybrid's weights, losses and updates, as they were when its first runs were made.

Runs and checkpoints outlive the code that made them: a seed must go on giving the same model. The weights are drawn in
float32 and then trained in float64: AdamW's first steps have the size of the rate whatever the gradient's, so in
float32 a gradient that is all rounding takes the third loss of pha-tiny 2e-4 away, on each kind of processor elsewhere.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch

from model.config import ModelConfig
from model.lm import LanguageModel
from model.presets import preset

FIGURES: list[tuple[str, dict[str, Any], list[float]]] = [
    ("pha-nano", {}, [4.1205143355, 3.8837830102, 3.6572108070]),
    ("pha-nano", {"gss": {"input_scale": "rglru"}}, [4.1129677198, 3.8641780708, 3.6347778629]),
    ("pha-nano", {"gss": {"decay": "none"}}, [4.1207738890, 3.8848237821, 3.6569387215]),
    ("pha-nano", {"main_residual": "raw"}, [4.1196130467, 3.8994983214, 3.6728008105]),
    ("pha-nano", {"main_residual": "none"}, [4.1331988593, 4.1282204583, 3.9333358273]),
    ("pha-nano", {"dropout": 0.2}, [4.1274026340, 3.9236144731, 3.7491962314]),
    ("pha-tiny", {}, [4.1261233395, 3.7932023757, 2.9631120581]),
]
NAMES = {"packed": "91b1f0faf2c58369", "separate": "863dfd015aac186f"}
"""SHA-256 of the nano model's parameter names in their order, which the optimizer's state follows."""


@pytest.mark.parametrize("in_projections", NAMES)
@pytest.mark.parametrize(("name", "changes", "expected"), FIGURES)
def test_three_steps_give_the_first_codes_losses(
    name: str, changes: dict[str, Any], expected: list[float], in_projections: str
) -> None:
    torch.manual_seed(0)
    fixed = {"vocab_size": 61, "in_projections": in_projections}
    model = LanguageModel(ModelConfig(**{**preset(name).model_dump(), **fixed, **changes})).double()
    tokens = torch.randint(0, 61, (2, 70), generator=torch.Generator().manual_seed(1))
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor([20, 35, 14]))[None].expand(2, -1)
    groups = [
        {"params": [p for _, p in group.parameters], "weight_decay": 0.1 if group.decay else 0.0}
        for group in model.parameter_groups()
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    losses = []
    for rows in (None, documents, documents):
        loss = model(tokens[:, :-1], rows, labels=tokens[:, 1:]) / 138
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("in_projections", NAMES)
def test_names_of_the_weights(in_projections: str) -> None:
    changes = {"vocab_size": 61, "in_projections": in_projections}
    model = LanguageModel(preset("pha-nano").model_copy(update=changes))
    names = " ".join(name for name, _ in model.named_parameters())
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == NAMES[in_projections], names
