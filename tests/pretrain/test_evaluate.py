from __future__ import annotations

import math

import pytest
import torch

from data_pipeline.dataset import Dataset
from pretrain.config import EvalConfig
from pretrain.distributed import World
from pretrain.evaluate import accumulate, batches_of, summarise

CPU = torch.device("cpu")


def uniform(vocab):
    """A model that gives every token the same probability."""

    def loss_sum(tokens, labels, documents):
        return (labels != -100).sum() * math.log(vocab)

    return loss_sum


@pytest.fixture(scope="module")
def split(tiny_dataset):
    return Dataset.open(tiny_dataset).split("validation")


def test_a_uniform_model_has_the_figures_of_the_textbook(split):
    batches = batches_of(split, 32, EvalConfig(batch=4), World())
    nats, tokens = accumulate(uniform(512), batches, CPU)
    result = summarise("validation", split, nats, tokens)
    assert result.complete
    assert result.tokens == split.tokens - 1
    assert result.perplexity == pytest.approx(512)
    assert result.bits_per_byte == pytest.approx(9 * result.tokens / split.bytes)
    assert result.word_perplexity == pytest.approx(math.exp(nats / split.words))


def test_ranks_share_the_work_without_overlap(split):
    alone = accumulate(uniform(512), batches_of(split, 32, EvalConfig(batch=4), World()), CPU)
    shares = [
        accumulate(uniform(512), batches_of(split, 32, EvalConfig(batch=4), World(rank, rank, 3, 3)), CPU)
        for rank in range(3)
    ]
    assert sum(tokens for _, tokens in shares) == alone[1]
    lengths = {len(list(batches_of(split, 32, EvalConfig(batch=4), World(rank, rank, 3, 3)))) for rank in range(3)}
    assert len(lengths) == 1, "a rank with fewer batches would leave the others waiting"


def test_a_part_of_the_split_is_told_apart(split):
    batches = list(batches_of(split, 32, EvalConfig(batch=4, sequences=10), World()))
    nats, tokens = accumulate(uniform(512), batches, CPU)
    result = summarise("validation", split, nats, tokens)
    assert not result.complete
    assert result.tokens == sum(b.predictions for b in batches) == 320
    assert result.bits_per_byte == pytest.approx(9 * (split.tokens - 1) / split.bytes)


def test_a_stop_cuts_it_short(split):
    batches = batches_of(split, 32, EvalConfig(batch=4), World())
    _, tokens = accumulate(uniform(512), batches, CPU, interrupted=lambda: True)
    assert tokens == 4 * 32
