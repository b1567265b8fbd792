"""A Transformer becomes a hedgehog: its weights arrive, its attention is imitated, and that helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.attention import Attention
from model.config import ModelConfig
from model.distill import AttentionMatching, adopt
from model.errors import ModelError
from model.hedgehog import distillation_loss, hedgehog_features, softmax_attention_weights
from model.lm import LanguageModel
from model.presets import preset

Build = Callable[..., LanguageModel]
VOCABULARY, HALF = 29, 8


def _student(teacher: LanguageModel, build: Build, **fields: Any) -> LanguageModel:
    student = build(seed=5, architecture="hedgehog", **fields)
    adopt(student, teacher.config, teacher.state_dict())
    return student


def _tokens() -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.randint(0, 61, (2, 13), generator=torch.Generator().manual_seed(2))
    documents = torch.tensor([[0] * 6 + [1] * 7, [0] * 13])
    labels = tokens.roll(-1, 1)
    labels[1, 9:] = -100
    return tokens, documents, labels


@pytest.mark.parametrize("scores", ["plain", "cosine"])
def test_the_teachers_weights_arrive_bit_for_bit(build: Build, scores: str) -> None:
    teacher = build(architecture="transformer", attention={"scores": scores})
    student = _student(teacher, build, attention={"scores": scores})
    theirs = teacher.state_dict()
    for name, value in student.state_dict().items():
        if "_map." not in name:
            assert torch.equal(value, theirs.pop(name.replace("hedgehog", "attention"))), name
    assert not theirs
    again = build(seed=6, architecture="hedgehog", attention={"scores": scores})
    adopt(again, student.config, student.state_dict())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("scores", ["plain", "cosine"])
@torch.no_grad()
def test_while_it_imitates_the_stream_is_the_teachers(build: Build, scores: str) -> None:
    teacher = build(architecture="transformer", attention={"scores": scores})
    student = _student(teacher, build, attention={"scores": scores}, dropout=0.5)
    tokens, documents, _ = _tokens()
    assert not torch.allclose(student.eval()(tokens, documents), teacher(tokens, documents), atol=1e-3)
    matching = AttentionMatching(student).train()
    torch.testing.assert_close(matching.model(tokens, documents), teacher(tokens, documents), rtol=1e-4, atol=1e-5)
    plain = _student(teacher, build, attention={"scores": scores})(tokens, documents, tokens)
    assert torch.equal(matching.eval()(tokens, documents, tokens), plain)


def test_the_loss_is_that_of_each_layer_over_tokens_with_a_label(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = build(architecture="transformer", n_kv_heads=4)
    tokens, documents, labels = _tokens()
    seen: list[tuple[Tensor, Tensor]] = []
    project = Attention._project

    def watched(self: Attention, *arguments: Any) -> Any:
        projected = project(self, *arguments)
        seen.append((projected[0].detach(), projected[1].detach()))
        return projected

    monkeypatch.setattr(Attention, "_project", watched)
    teacher(tokens, documents)
    expected = torch.zeros(())
    for queries, keys in seen:
        for row, pieces in ((0, [slice(0, 6), slice(6, 13)]), (1, [slice(0, 13)])):
            for piece in pieces:
                q, k = queries[row : row + 1, piece], keys[row : row + 1, piece]
                weights = torch.einsum("bthf,bshf->bhts", hedgehog_features(q), hedgehog_features(k)).tril()
                weights = weights / weights.sum(-1, keepdim=True)
                counted = int((labels[row, piece] != -100).sum())
                rows = slice(0, counted)  # labels are missing at the end only
                expected += counted * distillation_loss(
                    softmax_attention_weights(q, k)[..., rows, :], weights[..., rows, :]
                )
    loss = AttentionMatching(_student(teacher, build, n_kv_heads=4))(tokens, documents, labels)
    torch.testing.assert_close(loss, expected / len(teacher.layers), rtol=1e-5, atol=1e-5)


def test_only_the_maps_learn(build: Build) -> None:
    matching = AttentionMatching(_student(build(architecture="transformer"), build))
    matching(*_tokens()).backward()
    for name, parameter in matching.named_parameters():
        assert parameter.requires_grad == ("_map." in name)
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == ("_map." in name), name


@pytest.mark.parametrize(
    ("teacher", "student", "words"),
    [
        ({"n_heads": 2}, {}, "n_heads is 2 in the Transformer to start from and 4"),
        ({"attention": {"scores": "cosine"}}, {}, "cosine is True"),
        ({"attention": {"positions": "none"}}, {}, r"attention\.positions is none"),
        ({"attention": {"window": 5}}, {}, "sees a window"),
        ({"n_layers": 3}, {}, r"blocks\.2\.\S+ is \[.*\] there and missing here"),
        ({"ffn_main": 3.0}, {}, r"blocks\.0\.ffn_main\.down\.weight is \[32, 96\] there and \[32, 64\] here"),
        ({"architecture": "mamba2"}, {}, r"is missing there and \[.*\] here"),
    ],
)
def test_weights_that_do_not_fit_are_named(build: Build, teacher: Any, student: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        _student(build(**{"architecture": "transformer", **teacher}), build, **student)


def test_only_a_hedgehog_can_be_distilled(build: Build) -> None:
    with pytest.raises(ModelError, match="the model is a transformer"):
        AttentionMatching(build(architecture="transformer"))


def _repeats(generator: torch.Generator, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens, twice: the second half can be predicted by looking back at the first."""
    half = torch.randint(0, VOCABULARY, (rows, HALF), generator=generator)
    tokens = torch.cat([half, half], dim=1)
    labels = tokens.roll(-1, 1)
    labels[:, : HALF - 1] = labels[:, -1] = -100
    return tokens, torch.zeros_like(tokens), labels


def _fit(module: nn.Module, steps: int, rate: float, seed: int) -> list[float]:
    generator, losses = torch.Generator().manual_seed(seed), []
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=rate, betas=(0.9, 0.95))
    for _ in range(steps):
        tokens, documents, labels = _repeats(generator, 16)
        loss = module(tokens, documents, labels) / (labels != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_distillation_lowers_the_mismatch_and_helps_after_equally_much_fine_tuning() -> None:
    tree = {"vocab_size": VOCABULARY, "n_heads": 2}
    configs = [ModelConfig(**{**preset(f"{name}-nano").model_dump(), **tree}) for name in ("transformer", "hedgehog")]
    torch.manual_seed(0)
    teacher = LanguageModel(configs[0])
    assert _fit(teacher, 300, 3e-3, 1)[-1] < 0.05
    students = []
    for distils in (False, True):
        torch.manual_seed(0)
        student = LanguageModel(configs[1])
        adopt(student, configs[0], teacher.state_dict())
        if distils:
            losses = _fit(AttentionMatching(student), 60, 1e-2, 2)
            assert losses[-1] < 0.85 * losses[0]
            fresh = LanguageModel(configs[1])  # as a second run finds it
            adopt(fresh, configs[1], student.state_dict())
            student = fresh
        students.append(_fit(student, 15, 1e-3, 3))
    plain, distilled = students
    assert distilled[0] < 0.75 * plain[0]
    assert distilled[-1] < 0.6 * plain[-1]
