"""What every architecture must do, the same tests for all: causality, documents, cache, counts, groups, precision."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from model import architectures
from model.block import MIXERS
from model.cache import KeyValueMemory, States
from model.flops import FLOPS, flops_per_token
from model.generate import generate
from model.init import initialise
from model.lm import LanguageModel
from model.params import PARAMETERS, count_parameters
from model.presets import PRESETS
from tests.model.architecture_cases import CASES

Build = Callable[..., LanguageModel]
LENGTHS = [5, 8, 1, 9]
TOTAL = sum(LENGTHS)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of the sliding window so small that 23 tokens need several."""
    monkeypatch.setattr("model.window.MIN_BLOCK", 2)


@pytest.fixture(params=CASES)
def model(request: pytest.FixtureRequest, build: Build) -> LanguageModel:
    return build(**CASES[request.param])


@pytest.fixture(params=CASES)
def apart(request: pytest.FixtureRequest, build: Build) -> LanguageModel:
    """`model` before the branches' matrices are joined."""
    return build(**CASES[request.param], in_projections="separate")


def _tokens(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def _documents() -> Tensor:
    return torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))[None]


def test_the_cases_and_registries_are_complete(build: Build) -> None:
    models = [build(**case) for case in CASES.values()]
    assert {m.config.architecture for m in models} == set(architectures.ARCHITECTURES)
    assert set(get_args(architectures.Name)) == set(architectures.ARCHITECTURES)
    assert {config.architecture for config in PRESETS.values()} == set(architectures.ARCHITECTURES)
    assert set(MIXERS) == set(PARAMETERS) == set(FLOPS)
    used = {part for m in models for part in architectures.parts(m.config)}
    assert used == set(MIXERS)


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_a_token_changes_nothing_before_it(model: LanguageModel, packed: bool) -> None:
    tokens, documents = _tokens(1, TOTAL), _documents() if packed else None
    before = model(tokens, documents)
    for position in range(1, TOTAL):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % 61
        after = model(changed, documents)
        assert torch.equal(before[:, :position], after[:, :position]), position
        assert not torch.equal(before[:, position], after[:, position])


@torch.no_grad()
def test_a_document_changes_no_bit_of_another(model: LanguageModel) -> None:
    tokens, documents = _tokens(1, TOTAL), _documents()
    before = model(tokens, documents)
    for position in range(TOTAL):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 7) % 61
        others = documents[0] != documents[0, position]
        after = model(changed, documents)
        assert torch.equal(before[:, others], after[:, others]), position


@torch.no_grad()
def test_packed_documents_equal_documents_alone(model: LanguageModel) -> None:
    tokens = _tokens(1, TOTAL)
    alone = torch.cat([model(part) for part in tokens.split(LENGTHS, dim=1)], dim=1)
    torch.testing.assert_close(model(tokens, _documents()), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pieces", [[1] * TOTAL, [13, 1, 1, 8], [1, 15, 2, 5], [3, 3, 4, 13], [22, 1]])
@torch.no_grad()
def test_pieces_through_the_cache_equal_one_call(model: LanguageModel, pieces: list[int]) -> None:
    model.eval()
    tokens = _tokens(2, TOTAL)
    cache = model.new_cache(2, TOTAL)
    parts = [model(piece, cache=cache) for piece in tokens.split(pieces, dim=1)]
    assert cache.position == TOTAL
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_only_full_attention_needs_more_memory_for_a_longer_text(model: LanguageModel) -> None:
    def size(length: int) -> int:
        memories = [m for layer in model.new_cache(1, length).layers for m in layer.values()]
        tensors = [t for m in memories for t in (m.tensors.values() if isinstance(m, States) else (m.keys, m.values))]
        return sum(t.numel() for t in tensors)

    full = "attention" in architectures.parts(model.config) and model.config.attention.window is None
    assert (size(1000) > size(10)) == full
    assert model.new_cache(1, 10).capacity == (10 if full else None)


def test_greedy_generation_equals_the_whole_text_again(model: LanguageModel) -> None:
    model.eval()
    tokens = _tokens(2, 4)
    with torch.no_grad():
        for _ in range(9):
            tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    assert generate(model, tokens[:, :4], 9, temperature=0.0) == tokens[:, 4:].tolist()


@pytest.mark.parametrize("case", CASES)
def test_the_first_loss_is_that_of_a_uniform_guess(build: Build, case: str) -> None:
    torch.manual_seed(0)
    model = LanguageModel(build(**{**CASES[case], "vocab_size": 1000, "d_model": 64, "n_layers": 6}).config)
    tokens = torch.randint(0, 1000, (2, 65))
    with torch.no_grad():
        loss = model(tokens[:, :-1], labels=tokens[:, 1:]).item() / 128
    assert loss == pytest.approx(math.log(1000), abs=0.1)


def test_parameters_count_as_the_formulae_say(apart: LanguageModel) -> None:
    expected: dict[str, int] = {}
    for name, parameter in apart.named_parameters():
        path = name.split(".")
        part = path[2] if path[0] == "blocks" else path[0]
        part = "norms" if part.startswith("norm") else part
        expected[part] = expected.get(part, 0) + parameter.numel()
    assert count_parameters(apart.config) == {**expected, "total": sum(expected.values())}


def test_linear_maps_cost_what_the_formulae_say(model: LanguageModel) -> None:
    rows, length = 2, 7
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(rows, length, dtype=torch.int64))
    measured = sum(
        sum(ops.values())
        for name, ops in counter.get_flop_counts().items()
        if name.removeprefix("LanguageModel.") in linear
    )
    parts = flops_per_token(model.config, length, backward=False)
    mapped = sum(value for name, value in parts.items() if name.endswith("_projections") or name.startswith("ffn"))
    assert measured == mapped * rows * length > 0


def test_matrices_decay_and_nothing_else(model: LanguageModel) -> None:
    groups = {group.name: [name for name, _ in group.parameters] for group in model.parameter_groups()}
    assert sorted(groups["decay"] + groups["no_decay"]) == sorted(name for name, _ in model.named_parameters())
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(groups["decay"]) == linear
    states = ("A_log", ".C", ".D", "decay", "log_rate", "frequency", "log_step", ".shift_")
    marks = (*states, "norm", "bias", "mixing", "log_scale", "conv", "embedding", "query_map", "key_map", "gate_weight")
    assert not [name for name in groups["decay"] if any(mark in name for mark in marks)]
    assert all(any(mark in name for mark in marks) for name in groups["no_decay"])


def test_initialisation_leaves_nothing_out(apart: LanguageModel) -> None:
    with torch.no_grad():
        for parameter in apart.parameters():
            parameter.fill_(torch.nan)
    initialise(apart, apart.config)
    assert all(parameter.isfinite().all() for parameter in apart.parameters())


def test_every_parameter_learns_and_recomputation_changes_no_gradient(model: LanguageModel) -> None:
    tokens, documents = _tokens(2, TOTAL), _documents().expand(2, -1)
    gradients = []
    for every in (0, 1):
        model.set_recompute(functools.partial(checkpoint, use_reentrant=False), every)
        model.zero_grad()
        model(tokens, documents, labels=tokens).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.abs().sum() > 0, name
        assert torch.equal(gradient, gradients[1][name]), name


def test_the_loss_is_that_of_the_logits(model: LanguageModel) -> None:
    tokens, documents = _tokens(2, TOTAL), _documents().expand(2, -1)
    plain = F.cross_entropy(model(tokens, documents).flatten(0, 1), tokens.flatten(), reduction="sum")
    torch.testing.assert_close(model(tokens, documents, tokens), plain, rtol=1e-5, atol=1e-5)


def test_bfloat16_autocast_keeps_states_wide(model: LanguageModel) -> None:
    tokens, documents = _tokens(2, TOTAL), _documents().expand(2, -1)
    exact = model(tokens, documents, labels=tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(tokens, documents, labels=tokens)
        with torch.no_grad():
            cache = model.eval().new_cache(2, TOTAL, torch.bfloat16)
            logits = [model(piece, cache=cache) for piece in tokens.split([TOTAL - 1, 1], dim=1)]
    loss.backward()
    assert loss.dtype == logits[0].dtype == torch.float32
    for memory in (m for layer in cache.layers for m in layer.values()):
        if isinstance(memory, States):
            assert all(tensor.dtype == torch.float32 for tensor in memory.tensors.values())
        elif isinstance(memory, KeyValueMemory):
            assert memory.keys.dtype == torch.bfloat16
    torch.testing.assert_close(loss, exact, rtol=0.01, atol=0.0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_mixing_weights_of_every_kind(model: LanguageModel) -> None:
    model(_tokens(2, 5))
    weights, branches = model.mixing_weights(), model.config.mixed_branches
    assert weights.shape == ((2, len(branches)) if branches else (0, 0)) and not weights.requires_grad
    if branches:
        assert (weights > 0).all()
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))


def test_dropout_acts_in_training_only(build: Build) -> None:
    for case in CASES.values():
        model: Any = build(**case, dropout=0.3)
        tokens = _tokens(1, 9)
        assert not torch.equal(model(tokens), model(tokens))
        model.eval()
        assert torch.equal(model(tokens), model(tokens))
