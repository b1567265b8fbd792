"""A whole training step with every kernel in the interpreter is the step without them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from model.kernels import dispatch
from model.lm import LanguageModel
from model.presets import preset

CPU = torch.device("cpu")


def step(model: LanguageModel, mode: str, tokens, documents, labels):
    """The loss and all gradients."""
    dispatch.choose(mode, CPU)
    try:
        model.zero_grad()
        loss = model(tokens, documents, labels) / (labels >= 0).sum()
        loss.backward()
    finally:
        dispatch.choose("triton", CPU)
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def counted(monkeypatch) -> Callable[[], set[str]]:
    """The kernels that were launched."""
    from model.kernels import launch

    seen: set[str] = set()
    run = launch.launch

    def note(kernel, *args, **kwargs):
        program = getattr(kernel, "kernel", kernel)  # of a tuned one
        seen.add(f"{program.fn.__module__} {program.__name__}")
        run(kernel, *args, **kwargs)

    from model.kernels import chunked, cross_entropy, fusion, gated_scan, rms_norm, rotary, swiglu

    for module in (chunked, cross_entropy, fusion, gated_scan, rms_norm, rotary, swiglu):
        monkeypatch.setattr(module, "launch", note)
    return lambda: seen


@pytest.mark.parametrize("name", ["pha-tiny", "mamba2-tiny", "hedgehog-tiny"])
def test_a_training_step_with_all_kernels_is_the_step_without(name, counted):
    torch.manual_seed(0)
    model = LanguageModel(preset(name).model_copy(update={"vocab_size": 512, "n_layers": 2}))
    tokens = torch.randint(0, 512, (1, 80))
    documents = torch.zeros(1, 80, dtype=torch.int64)
    documents[0, 37:] = 1
    labels = torch.cat([tokens[:, 1:], torch.full((1, 1), -100)], dim=1)
    loss, gradients = step(model, "triton", tokens, documents, labels)
    used = counted()
    expected_loss, expected = step(model, "reference", tokens, documents, labels)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for key, gradient in gradients.items():
        error = (gradient - expected[key]).norm() / expected[key].norm()
        assert error < 1e-4, (key, error)
    if name == "pha-tiny":
        assert len(used) >= 11, used
