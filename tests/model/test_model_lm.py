"""The whole model: documents, causality, loss, recomputation, parameter groups."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.errors import ModelError
from model.lm import LanguageModel
from model.rows import rope_tables

Build = Callable[..., LanguageModel]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"gss": {"input_scale": "rglru"}},
    {"gss": {"decay": "none"}},
    {"main_residual": "raw"},
    {"main_residual": "none"},
]
DERANDOMIZED = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the fixture is a pure function
)


def _tokens(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def _documents(lengths: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_another_document_changes_no_bit(build: Build, variant: dict[str, Any]) -> None:
    model = build(**variant)
    tokens = _tokens(1, 18)
    documents = _documents([5, 8, 1, 4])
    before = model(tokens, documents)
    changed = tokens.clone()
    changed[:, :5] = (changed[:, :5] + 7) % 61
    changed[:, 13] = (changed[:, 13] + 7) % 61
    after = model(changed, documents)
    assert torch.equal(before[:, 5:13], after[:, 5:13])
    assert torch.equal(before[:, 14:], after[:, 14:])
    assert not torch.equal(before[:, :5], after[:, :5])


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_without_documents_the_past_does_matter(build: Build, variant: dict[str, Any]) -> None:
    model = build(**variant)
    tokens = _tokens(1, 18)
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 7) % 61
    difference = (model(tokens) - model(changed)).abs().amax(dim=-1)[0]
    assert (difference > 1e-7).all()


@DERANDOMIZED
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), rglru=st.booleans())
@torch.no_grad()
def test_packed_documents_equal_separate_ones(build: Build, lengths: list[int], rglru: bool) -> None:
    model = build(gss={"input_scale": "rglru" if rglru else "none"})
    tokens = _tokens(1, sum(lengths), seed=len(lengths))
    packed = model(tokens, _documents(lengths))
    separate = torch.cat([model(part) for part in tokens.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, separate, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_positions_restart_and_only_changes_of_the_number_count(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    tokens = _tokens(1, 9)
    expected = model(tokens, _documents([4, 2, 3]))
    seen: list[Tensor] = []

    def record(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
        seen.append(positions)
        return rope_tables(positions, head_dim, theta)

    monkeypatch.setattr("model.rows.rope_tables", record)
    returning = torch.tensor([[7, 7, 7, 7, 2, 2, 7, 7, 7]])
    assert torch.equal(model(tokens, returning), expected)
    assert seen[0].tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2]]


@DERANDOMIZED
@given(length=st.integers(2, 19), data=st.data(), packed=st.booleans())
@torch.no_grad()
def test_causality(build: Build, length: int, data: st.DataObject, packed: bool) -> None:
    model = build()
    position = data.draw(st.integers(1, length - 1))
    documents = _documents([max(1, length // 3), length - max(1, length // 3)]) if packed else None
    tokens = _tokens(1, length)
    changed = tokens.clone()
    changed[:, position:] = (changed[:, position:] + 1) % 61
    before, after = model(tokens, documents), model(changed, documents)
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.equal(before[:, position], after[:, position])


def test_the_loss_and_its_gradients_are_those_of_the_logits(build: Build) -> None:
    model = build()
    tokens, labels = _tokens(3, 11), _tokens(3, 11, seed=2)
    labels[0, :4] = -100
    labels[2] = -100
    loss = model(tokens, labels=labels)
    loss.backward()
    chunked = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    plain = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    plain.backward()
    assert loss.dtype == torch.float32 and loss.ndim == 0
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        torch.testing.assert_close(chunked[name], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("every", [0, 1, 2])
def test_recomputation_changes_no_gradient(build: Build, every: int) -> None:
    model = build(dropout=0.2)
    recomputed = build(dropout=0.2)
    calls: list[object] = []

    def count(function: object, *arguments: Tensor | None) -> Tensor:
        calls.append(function)
        assert all(argument is None or isinstance(argument, Tensor) for argument in arguments)
        return functools.partial(checkpoint, use_reentrant=False)(function, *arguments)

    recomputed.set_recompute(count, every)
    tokens, documents = _tokens(2, 9), _documents([4, 5]).expand(2, -1)
    for network in (model, recomputed):
        torch.manual_seed(3)
        network(tokens, documents, labels=tokens).backward()
    assert calls == [block for i, block in enumerate(recomputed.blocks) if every and i % every == 0]
    for (name, a), (_, b) in zip(model.named_parameters(), recomputed.named_parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad), name


def test_recomputation_is_for_training_only(build: Build) -> None:
    def refuse(function: object, *arguments: Tensor | None) -> Tensor:
        raise AssertionError("evaluation recomputed")

    model = build()
    model.set_recompute(refuse, 1)
    model.eval()
    model(_tokens(1, 4))
    model.train()
    with torch.no_grad():
        model(_tokens(1, 4))
    with pytest.raises(AssertionError):
        model(_tokens(1, 4))


def test_each_parameter_is_in_the_right_group_once(build: Build) -> None:
    model = build()
    groups = {group.name: group for group in model.parameter_groups()}
    assert groups["decay"].decay and not groups["no_decay"].decay
    names = [name for group in groups.values() for name, _ in group.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    same = dict(model.named_parameters())
    assert all(parameter is same[name] for group in groups.values() for name, parameter in group.parameters)
    decayed = {name.split(".", 2)[2] for name, _ in groups["decay"].parameters}
    assert decayed == {
        "in_proj.weight",
        "gss.out_proj.weight",
        "attention.out.weight",
        "ffn_aux.down.weight",
        "ffn_main.gate_up.weight",
        "ffn_main.down.weight",
    }


def test_mixing_weights(build: Build) -> None:
    model = build()
    weights = model.mixing_weights()
    assert weights.shape == (2, 3) and not weights.requires_grad and (weights > 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))
    with torch.no_grad():
        model.layers[0].mixing.p.fill_(1.7)
        model.layers[1].mixing.p.copy_(torch.tensor([0.0, 1.0, -1.0]))
    softplus = [0.6931472, 1.3132617, 0.3132617]
    expected = torch.tensor([[1 / 3] * 3, [value / sum(softplus) for value in softplus]])
    torch.testing.assert_close(model.mixing_weights(), expected)
    model.layers[1].mixing.p = torch.nn.Parameter(torch.empty(0))
    with pytest.raises(ModelError, match="gather them"):
        model.mixing_weights()


@pytest.mark.parametrize("branch", range(3))
@torch.no_grad()
def test_a_branch_counts_by_its_own_weight(build: Build, branch: int) -> None:
    model = build(n_layers=1)
    block = model.layers[0]
    projections = [block.gss.out_proj, block.attention.out, block.ffn_aux.down]
    x = torch.randn(1, 6, 32)
    tables = rope_tables(torch.arange(6)[None], 8, 1e4)
    block.mixing.p.fill_(-60.0)
    block.mixing.p[branch] = 1.0  # only this branch counts
    before = block(x, *tables)
    for index, projection in enumerate(projections):
        kept = projection.weight.clone()
        projection.weight.copy_(torch.randn_like(kept))
        assert torch.allclose(before, block(x, *tables), atol=1e-6) == (index != branch)
        projection.weight.copy_(kept)


def test_bfloat16_autocast_keeps_the_recurrence_wide(build: Build) -> None:
    model = build()
    tokens = _tokens(2, 9)
    exact = model(tokens, labels=tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(tokens, labels=tokens)
        model.eval()
        with torch.no_grad():
            cache = model.new_cache(2, 9, torch.bfloat16)
            logits = model(tokens, cache=cache)
    loss.backward()
    assert loss.dtype == logits.dtype == cache.layers[0]["gss"].tensors["state"].dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.01, atol=0.0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"tokens": torch.zeros(4, dtype=torch.int64)}, "Tokens are"),
        ({"tokens": torch.zeros(1, 0, dtype=torch.int64)}, "at least one token"),
        ({"tokens": torch.zeros(1, 4)}, "torch.int64"),
        ({"tokens": torch.zeros(1, 4, dtype=torch.int64), "labels": torch.zeros(1, 3)}, "Labels have shape"),
        (
            {"tokens": torch.zeros(1, 4, dtype=torch.int64), "documents": torch.zeros(4)},
            "Documents have shape",
        ),
    ],
)
def test_arguments_that_do_not_fit(build: Build, arguments: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        build()(**arguments)


def test_negative_recomputation_is_refused(build: Build) -> None:
    with pytest.raises(ModelError, match="every -1 blocks"):
        build().set_recompute(checkpoint, -1)


def test_a_model_needs_a_vocabulary(build: Build) -> None:
    with pytest.raises(ModelError, match="vocab_size is not set"):
        build(vocab_size=None)


def test_branches_are_measured_while_they_are_watched(build: Build) -> None:
    model = build()
    tokens = torch.randint(0, 61, (2, 9))
    model(tokens, labels=tokens)
    assert model.branch_rms().numel() == 0
    seen: list[Tensor] = []
    for part in model.layers[1].parts:
        hook = lambda _, __, out: seen.append(out.detach().square().mean().sqrt())  # noqa: E731
        model.layers[1].get_submodule(part).register_forward_hook(hook)
    model.watch_branches(True)
    loss = model(tokens, labels=tokens)
    found = model.branch_rms()
    assert found.shape == (2, 3) and not found.requires_grad
    torch.testing.assert_close(found[1], torch.stack(seen))
    model.watch_branches(False)
    assert torch.equal(model(tokens, labels=tokens), loss)
    assert build(architecture="mamba2").branch_rms().numel() == 0
