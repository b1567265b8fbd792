"""Selective attention token by token in float64, its budget loss, and its noise."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model import architectures
from model.block import SelectiveBlock
from model.budget import budget_loss_sum
from model.config import ModelConfig, TaipanConfig
from model.lm import LanguageModel
from model.params import count_parameters
from model.presets import preset
from model.rows import Rows
from tests.model.ops import normal, relative_errors

Build = Callable[..., LanguageModel]
OPEN = {"every": 1, "window": 5, "budget": 0.5, "noise": False}


def _norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean() + eps).sqrt() * gain


def reference(p: dict[str, Tensor], config: ModelConfig, stream: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """The layer for one row [T, d], as the equations say: each token by itself, one head after another."""
    heads, group, size = config.n_heads, config.n_heads // config.n_kv_heads, config.head_dim
    width = config.n_kv_heads * size
    normed = [_norm(h, p["norm_selective.weight"], config.norm_eps) for h in stream]
    outputs, weights = [], []
    for t, h in enumerate(stream):
        s = p["selective.gate_weight"] @ normed[t] + p["selective.gate_bias"]
        alpha = s.softmax(0)[1]
        soft = (s / config.taipan.tau).softmax(0)[1]
        attends = bool(s[1] > s[0])
        weight = float(attends) + soft - soft.detach()
        weights.append(weight)
        if attends:
            projected = [p["selective.qkv.weight"] @ x for x in normed]
            first = max([u for u in range(t + 1) if starts[u]] + [0, t - config.taipan.window + 1])
            mixed = []
            for head in range(heads):
                query = projected[t][head * size : (head + 1) * size]
                key_at = config.d_model + head // group * size
                keys = [projected[u][key_at : key_at + size] for u in range(first, t + 1)]
                values = [projected[u][key_at + width : key_at + width + size] for u in range(first, t + 1)]
                scores = torch.stack([query @ key / math.sqrt(size) for key in keys]).softmax(0)
                mixed.append(sum(score * value for score, value in zip(scores, values, strict=True)))
            found = p["selective.out.weight"] @ torch.cat(mixed)
            h = h + weight * ((1 - alpha) * h + alpha * found - h)
        gate, up = (p["ffn_main.gate_up.weight"] @ _norm(h, p["norm_ffn.weight"], config.norm_eps)).chunk(2)
        outputs.append(h + p["ffn_main.down.weight"] @ (F.silu(gate) * up))
    return torch.stack(outputs), torch.stack(weights)


@pytest.mark.parametrize("length", [1, 4, 5, 6, 13])
@pytest.mark.parametrize("packed", [False, True])
def test_the_layer_equals_its_equations_in_values_and_gradients(build: Build, length: int, packed: bool) -> None:
    model = build(architecture="taipan", taipan={**OPEN, "tau": 0.7})
    block = next(block for block in model.layers if isinstance(block, SelectiveBlock))
    generator = torch.Generator().manual_seed(length)
    stream, cotangent = normal(generator, 1, length, 32), normal(generator, length, 32)
    pull = normal(generator, length)
    starts = torch.zeros(1, length, dtype=torch.bool)
    starts[:, 0] = True
    starts[:, [i for i in (3, 4, 9) if i < length]] = packed
    results: list[list[Tensor]] = []
    for exact in (False, True):
        dtype = torch.float64 if exact else torch.float32
        leaves = {name: p.detach().to(dtype).requires_grad_() for name, p in block.named_parameters()}
        x = stream.to(dtype).requires_grad_()
        if exact:
            out, weight = reference(leaves, model.config, x[0], starts[0])
        else:
            arguments = (x, *Rows(starts=starts if packed else None))
            out, weight = (t[0] for t in torch.func.functional_call(block, leaves, arguments))
        loss = (out * cotangent.to(dtype)).sum() + (weight * pull.to(dtype)).sum()
        gradients = torch.autograd.grad(loss, [x, *leaves.values()], allow_unused=True)
        results.append([out, weight, *(torch.zeros(1) if g is None else g for g in gradients)])
    assert 0 < results[1][1].sum() < length or length < 6
    errors = relative_errors([t.double() for t in results[0]], [t.double() for t in results[1]])
    assert max(errors) < 2e-5, errors


def _batch(rows: int = 4, length: int = 12) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(3))
    labels = tokens.roll(-1, 1)
    labels[1, 5:] = -100  # padding
    return tokens, labels


def test_the_budget_loss_is_a_mean_over_tokens_however_they_are_cut() -> None:
    labels = torch.tensor([[1, 2, 3, -100], [1, 2, -100, -100]])
    weight = torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 1]], requires_grad=True)
    expected = 3 * (0.25 - 1 / 3) ** 2 + 2 * (0.25 - 1 / 2) ** 2
    whole = budget_loss_sum([weight, weight], labels, 0.25)
    assert whole.item() == pytest.approx(2 * expected)
    parts = [budget_loss_sum([weight[row], weight[row]], labels[row], 0.25) for row in (slice(0, 1), slice(1, 2))]
    assert sum(parts).item() == pytest.approx(whole.item())
    (gradient,) = torch.autograd.grad(whole, weight)
    assert (gradient[labels == -100] == 0).all() and (gradient[labels != -100] != 0).all()
    sparse = torch.tensor([[-100, 2, -100, 4, -100]])  # what is not asked still counts as read
    few = budget_loss_sum([torch.tensor([[1.0, 0, 1, 0, 1]])], sparse, 0.25)
    assert few.item() == pytest.approx(2 * (0.25 - 0.5) ** 2)
    nothing = budget_loss_sum([weight], torch.full_like(labels, -100), 0.25)
    assert nothing.item() == 0


def test_it_enters_the_gradient_and_never_the_value(build: Build) -> None:
    model = build(architecture="taipan", taipan={**OPEN, "budget_warmup": 4})
    assert model.budget is not None
    model.budget.settings = model.budget.settings.model_copy(update={"budget": 0.01})
    tokens, labels = _batch()
    plain = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), reduction="sum")
    gates = [p for name, p in model.named_parameters() if name.endswith("gate_bias")]
    of_prediction = torch.autograd.grad(plain, gates)
    slopes = []
    for step in (0, 3, 100):
        model.begin_step(step)
        loss = model(tokens, labels=labels)
        torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0.0)
        slopes.append(torch.autograd.grad(loss, gates)[0] - of_prediction[0])
    torch.testing.assert_close(slopes[1], 4 * slopes[0], rtol=1e-3, atol=1e-4)
    assert torch.equal(slopes[1], slopes[2])
    assert slopes[0][1] > 0, "more attend than should, so the bias must fall"
    model.eval()
    torch.testing.assert_close(torch.autograd.grad(model(tokens, labels=labels), gates), of_prediction)


def test_micro_batches_and_recomputation_change_no_gradient(build: Build) -> None:
    model = build(architecture="taipan", taipan=OPEN)
    tokens, labels = _batch()
    gradients = []
    for cut, every in ((4, 0), (1, 0), (2, 1)):
        model.set_recompute(functools.partial(checkpoint, use_reentrant=False), every)
        model.zero_grad()
        for part in range(0, 4, cut):
            model(tokens[part : part + cut], labels=labels[part : part + cut]).backward()
        gradients.append([p.grad for p in model.parameters()])
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_noise_is_the_seeds_and_recomputation_repeats_it(build: Build, reentrant: bool) -> None:
    model = build(architecture="taipan", taipan={**OPEN, "noise": True})
    tokens, labels = _batch()
    results: list[Any] = []
    for seed, every in ((1, 0), (1, 1), (2, 0)):
        torch.manual_seed(seed)
        model.set_recompute(functools.partial(checkpoint, use_reentrant=reentrant), every)
        model.zero_grad()
        # a reentrant checkpoint needs an input with a gradient, which the embedding gives
        loss = model(tokens, labels=labels)
        loss.backward()
        results.append((loss.detach(), [p.grad for p in model.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
    assert not torch.equal(results[0][0], results[2][0])
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(tokens), model(tokens))


def test_at_the_start_the_budgets_share_attends(build: Build) -> None:
    config = ModelConfig(**{**preset("taipan-nano").model_dump(), "vocab_size": 61})
    torch.manual_seed(0)
    model = LanguageModel(config)
    assert model.budget is not None
    tokens = torch.randint(0, 61, (16, 256))
    model(tokens, labels=tokens)
    *attended, seen = model.budget.reading()
    assert seen == 16 * 256 and len(attended) == 1
    for count in attended:
        assert count / seen == pytest.approx(0.15, abs=0.02)
    assert model.budget.reading() == [0.0, 0.0]


def test_the_budgets_weight_rises_to_its_value() -> None:
    settings = TaipanConfig(budget_weight=8.0, budget_warmup=4)
    assert [settings.budget_weight_at(step) for step in range(6)] == [2, 4, 6, 8, 8, 8]
    assert TaipanConfig(budget_warmup=0).budget_weight_at(0) == TaipanConfig().budget_weight


def test_noise_that_shrinks_leaves_the_likelier_choice(build: Build) -> None:
    assert [TaipanConfig(noise_steps=4).noise_at(step) for step in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]
    assert TaipanConfig(noise_steps=None).noise_at(10**6) == 1 and TaipanConfig(noise=False).noise_at(0) == 0
    model = build(architecture="taipan", taipan={**OPEN, "noise": True, "noise_steps": 3})
    tokens, _ = _batch()
    with torch.no_grad():
        assert not torch.equal(model(tokens), model(tokens))
        model.begin_step(3)
        noiseless = model(tokens)
        assert torch.equal(noiseless, model.eval()(tokens))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"taipan": {"budget": 1.0}}, "share of the tokens"),
        ({"taipan": {"every": 0}}, "taipan.every is 0"),
        ({"taipan": {"window": 0}}, "taipan.window is 0"),
        ({"taipan": {"tau": 0.0}}, "taipan.tau is 0"),
        ({"taipan": {"noise_steps": 0}}, "noise_steps is 0"),
        ({"n_heads": 5}, "multiple of n_heads"),
    ],
)
def test_a_wrong_setting_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ModelConfig(**{**preset("taipan-nano").model_dump(), **changes})


def test_selective_layers_follow_every_k_blocks() -> None:
    def selective(every: int, layers: int) -> list[int]:
        tree = {**preset("taipan-nano").model_dump(), "n_layers": layers, "taipan": {"every": every}}
        parts = [layer.parts for layer in architectures.layers(ModelConfig(**tree))]
        assert set(parts) <= {("ssd", "ffn_main"), ("selective", "ffn_main")}
        return [index for index, part in enumerate(parts) if "selective" in part]

    assert selective(6, 21) == [6, 13, 20]
    assert selective(1, 4) == [1, 3]
    assert selective(2, 4) == [2]
    assert selective(6, 4) == [3], "a shallow model has one too"


@pytest.mark.parametrize(("name", "millions"), [("taipan-190m", 190), ("taipan-450m", 454.4), ("taipan-1.3b", 1316)])
def test_the_presets_have_the_parameters_that_they_say(name: str, millions: float) -> None:
    assert count_parameters(preset(name))["total"] / 1e6 == pytest.approx(millions, rel=1e-3)
