"""The Mamba-2 mixer against its equations, and the whole model against the one in transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import ModelConfig
from model.lm import LanguageModel
from model.mamba2 import Mamba2
from model.presets import preset

Build = Callable[..., LanguageModel]


def _slow(module: Mamba2, x: Tensor) -> Tensor:
    """One row, token by token and head by head, in float64."""
    weights = {name: value.detach().double() for name, value in module.named_parameters()}
    size, state, heads, groups = module.size, module.state, module.heads, module.groups
    channels = size // heads
    recent = torch.zeros(module.taps, size + 2 * groups * state, dtype=torch.float64)
    states = torch.zeros(heads, channels, state, dtype=torch.float64)
    out = []
    for token in x.double():
        z, xbc, dt = (weights["in_proj.weight"] @ token).split([size, size + 2 * groups * state, heads])
        recent = torch.cat([recent[1:], xbc[None]])
        convolved = F.silu((recent.t() * weights["conv_weight"]).sum(1) + weights["conv_bias"])
        inner, b, c = convolved.split([size, groups * state, groups * state])
        step = F.softplus(dt + weights["dt_bias"])
        y = torch.zeros(size, dtype=torch.float64)
        for head in range(heads):
            group = head // (heads // groups)
            rows, maps = slice(head * channels, (head + 1) * channels), slice(group * state, (group + 1) * state)
            decay = torch.exp(-step[head] * weights["A_log"][head].exp())
            states[head] = decay * states[head] + step[head] * torch.outer(inner[rows], b[maps])
            y[rows] = states[head] @ c[maps] + weights["D"][head] * inner[rows]
        gated = (y * F.silu(z)).unflatten(0, (groups, -1))
        normed = (gated / (gated.square().mean(-1, keepdim=True) + 1e-6).sqrt()).flatten() * weights["norm.weight"]
        out.append(weights["out_proj.weight"] @ normed)
    return torch.stack(out)


@pytest.mark.parametrize("ssd", [{}, {"groups": 2, "expand": 4.0}, {"conv": 1, "state": 3, "chunk": 64}])
@torch.no_grad()
def test_the_mixer_is_its_equations(build: Build, ssd: dict[str, Any]) -> None:
    module = build(architecture="mamba2", ssd=ssd).layers[0].ssd
    x = torch.randn(1, 11, 32)
    torch.testing.assert_close(module(x)[0].double(), _slow(module, x[0]), rtol=1e-4, atol=1e-5)


def test_steps_and_rates_start_in_their_ranges() -> None:
    config = ModelConfig(architecture="mamba2", vocab_size=7, d_model=512, n_layers=9, ssd={"head_dim": 4})
    torch.manual_seed(0)
    module = LanguageModel(config).layers[0].ssd
    steps, rates = F.softplus(module.dt_bias), module.A_log.exp()
    assert 1e-3 * 0.999 <= steps.min() < 2e-3 and 0.05 < steps.max() <= 0.1 * 1.001
    assert steps.log().mean().item() == pytest.approx(-4.6, abs=0.25)  # halfway between log 1e-3 and log 1e-1
    assert 1 <= rates.min() < 1.5 and 15 < rates.max() <= 16
    assert module.in_proj.weight.std().item() == pytest.approx((3 * 512) ** -0.5, rel=0.01)
    assert module.out_proj.weight.std().item() == pytest.approx((3 * 1024) ** -0.5 / 3, rel=0.01)
    assert torch.equal(module.D, torch.ones(256))


def _twins(**ssd: Any) -> tuple[LanguageModel, Any]:
    """Our model and that of transformers, with the same weights."""
    transformers = pytest.importorskip("transformers")
    tree = {**preset("mamba2-nano").model_dump(), "vocab_size": 61, "n_layers": 3, "embedding_scale": "none"}
    config = ModelConfig(**{**tree, "ssd": {**tree["ssd"], **ssd}})
    torch.manual_seed(0)
    model = LanguageModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "norm_ssd.weight", ".D")):
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif name.endswith((".weight", "conv_weight")):
                parameter.mul_(4)  # outputs and states of size 1, so that 1e-5 says something
    settings = config.ssd
    theirs = transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(
            vocab_size=61,
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            num_heads=config.ssd_heads,
            head_dim=settings.head_dim,
            state_size=settings.state,
            n_groups=settings.groups,
            expand=int(settings.expand),
            conv_kernel=settings.conv,
            chunk_size=8,
            layer_norm_epsilon=config.norm_eps,
            use_bias=False,
            use_conv_bias=True,
            rms_norm=True,
            residual_in_fp32=True,
            tie_word_embeddings=True,
            time_step_limit=(0.0, float("inf")),
        )
    ).eval()
    theirs.load_state_dict(_renamed(model), strict=True)
    return model, theirs


def _renamed(model: LanguageModel) -> dict[str, Tensor]:
    """Our weights under the names of transformers."""
    state = {"lm_head.weight": model.embedding.weight}
    for name, value in model.state_dict().items():
        name = name.replace("embedding.", "backbone.embeddings.").replace("blocks.", "backbone.layers.")
        name = "backbone.norm_f.weight" if name == "norm.weight" else name
        name = name.replace("norm_ssd.", "norm.").replace(".ssd.", ".mixer.")
        if name.endswith("conv_weight"):
            name, value = name.replace("conv_weight", "conv1d.weight"), value[:, None]
        state[name.replace("conv_bias", "conv1d.bias")] = value
    return state


@pytest.mark.parametrize("length", [1, 7, 8, 9, 23])
@torch.no_grad()
def test_outputs_equal_those_of_transformers(length: int) -> None:
    model, theirs = _twins()
    tokens = torch.randint(0, 61, (2, length), generator=torch.Generator().manual_seed(4))
    logits = model(tokens)
    assert logits.std() > 0.3
    torch.testing.assert_close(logits, theirs(tokens, use_cache=False).logits, rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_transformers() -> None:
    model, theirs = _twins()
    tokens = torch.randint(0, 61, (2, 19), generator=torch.Generator().manual_seed(4))
    model(tokens[:, :-1], labels=tokens[:, 1:]).backward()
    logits = theirs(tokens[:, :-1], use_cache=False).logits
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum").backward()
    expected = dict(theirs.named_parameters())
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, ours_grad in ours.items():
        if name.endswith(("A_log", "dt_bias", ".D", "in_proj.weight", "norm.weight")) and "blocks" in name:
            theirs_name = name.replace("blocks.", "backbone.layers.").replace("norm_ssd.", "norm.")
            theirs_grad = expected[theirs_name.replace(".ssd.", ".mixer.")].grad
            torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-3, atol=1e-4, msg=name)


@torch.no_grad()
def test_generation_from_the_cache_equals_transformers() -> None:
    from model.generate import generate

    model, theirs = _twins()
    prompt = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(5))
    expected = theirs.generate(
        prompt, max_new_tokens=12, do_sample=False, use_cache=True, pad_token_id=0, eos_token_id=None
    )
    new = generate(model, prompt, 12, temperature=0.0)
    assert new == expected[:, 9:].tolist()
    assert len(set(new[0])) > 2
