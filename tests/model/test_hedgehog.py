"""Hedgehog's features, weights and distillation loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.hedgehog import (
    attention_weights_of_features,
    distillation_loss,
    hedgehog_features,
    softmax_attention_weights,
)
from model.linear_attention import linear_attention_reference
from tests.model.ops import normal, random_starts


def test_features_are_a_distribution_and_survive_large_inputs() -> None:
    y = torch.tensor([[0.3, -1.2], [500.0, -400.0]], requires_grad=True)
    features = hedgehog_features(y.bfloat16())
    assert features.dtype == torch.float32
    assert features.shape == (2, 4)
    assert features.isfinite().all()
    torch.testing.assert_close(features.sum(-1), torch.ones(2))
    expected = torch.exp(torch.tensor([0.3, -1.2, -0.3, 1.2], dtype=torch.float64))
    torch.testing.assert_close(
        hedgehog_features(y.double())[0], expected / expected.sum(), rtol=1e-6, atol=0, check_dtype=False
    )
    (gradient,) = torch.autograd.grad(features.square().sum(), y)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("with_starts", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_weights_of_features_are_those_of_linear_attention(with_starts: bool, kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(kv_heads)
    phi_q = hedgehog_features(normal(generator, 2, 9, 4, 3))
    phi_k = hedgehog_features(normal(generator, 2, 9, kv_heads, 3))
    v = normal(generator, 2, 9, kv_heads, 5)
    starts = random_starts(generator, 2, 9) if with_starts else None
    weights = attention_weights_of_features(phi_q, phi_k, starts)
    values = v.repeat_interleave(4 // kv_heads, dim=2).transpose(1, 2)
    expected, _ = linear_attention_reference(phi_q, phi_k, v, starts)
    torch.testing.assert_close((weights @ values).transpose(1, 2), expected)


@pytest.mark.parametrize("with_starts", [False, True])
def test_softmax_weights_are_those_of_attention(with_starts: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = normal(generator, 2, 9, 4, 6), normal(generator, 2, 9, 2, 6), normal(generator, 2, 9, 2, 6)
    starts = random_starts(generator, 2, 9) if with_starts else torch.zeros(2, 9, dtype=torch.bool)
    documents = starts.cumsum(1)
    mask = (documents[:, None, :, None] == documents[:, None, None, :]) & torch.ones(9, 9).tril().bool()
    q_heads, k_heads, v_heads = (t.transpose(1, 2) for t in (q, k.repeat_interleave(2, 2), v.repeat_interleave(2, 2)))
    expected = F.scaled_dot_product_attention(q_heads, k_heads, v_heads, attn_mask=mask)
    weights = softmax_attention_weights(q, k, starts if with_starts else None)
    torch.testing.assert_close(weights @ v_heads, expected)


def _weights() -> tuple[Tensor, Tensor, Tensor]:
    """A teacher's weights, and the student's inputs."""
    generator = torch.Generator().manual_seed(5)
    q, k = normal(generator, 1, 7, 2, 4), normal(generator, 1, 7, 2, 4)
    starts = torch.zeros(1, 7, dtype=torch.bool)
    starts[:, 4] = True
    return softmax_attention_weights(q, k, starts), normal(generator, 1, 7, 2, 4), starts


def test_the_loss_is_least_where_the_student_is_the_teacher() -> None:
    teacher, y, starts = _weights()
    entropy = -torch.xlogy(teacher, teacher).sum(-1).mean()
    torch.testing.assert_close(distillation_loss(teacher, teacher), entropy)
    features = hedgehog_features(y)
    student = attention_weights_of_features(features, features, starts)
    assert distillation_loss(teacher, student) > entropy


def test_the_loss_keeps_documents_apart_and_teaches_the_student_alone() -> None:
    teacher, y, starts = _weights()
    y.requires_grad_()
    teacher.requires_grad_()
    features = hedgehog_features(y)
    student = attention_weights_of_features(features, features, starts)
    per_query = -(teacher * student.clamp(min=1e-12).log()).sum(-1)
    (gradient,) = torch.autograd.grad(per_query[..., 4:].sum(), y, retain_graph=True)
    assert torch.equal(gradient[:, :4], torch.zeros_like(gradient[:, :4]))
    gradients = torch.autograd.grad(distillation_loss(teacher, student), [y, teacher], allow_unused=True)
    assert gradients[0].isfinite().all()
    assert gradients[0].abs().sum() > 0
    assert gradients[1] is None


def test_distillation_brings_linear_attention_closer_to_softmax() -> None:
    generator = torch.Generator().manual_seed(6)
    q, k = 2 * torch.randn(1, 24, 2, 4, generator=generator), 2 * torch.randn(1, 24, 2, 4, generator=generator)
    teacher = softmax_attention_weights(q, k)
    maps = [torch.eye(4).repeat(2, 1, 1).requires_grad_() for _ in range(2)]
    optimizer = torch.optim.Adam(maps, lr=0.05)
    losses = []
    for _ in range(60):
        phi_q, phi_k = (
            hedgehog_features(torch.einsum("bthd,hde->bthe", x, w)) for x, w in zip((q, k), maps, strict=True)
        )
        loss = distillation_loss(teacher, attention_weights_of_features(phi_q, phi_k))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    entropy = -torch.xlogy(teacher, teacher).sum(-1).mean().item()
    assert losses[-1] - entropy < 0.5 * (losses[0] - entropy)
