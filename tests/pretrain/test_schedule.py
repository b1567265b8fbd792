from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config import OptimConfig, ScheduleConfig
from pretrain.schedule import learning_rate, plateau_cuts


def optim(**schedule):
    return OptimConfig(lr=1.0, schedule=ScheduleConfig(**schedule))


def test_cosine_warms_up_peaks_and_ends_on_the_floor():
    settings = optim(kind="cosine", warmup_steps=10, final_ratio=0.1)
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[10] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_constant_ignores_history():
    assert learning_rate(optim(kind="constant"), 50, 100, [9.0] * 40) == 1.0


@given(st.lists(st.floats(0.1, 10), max_size=40), st.integers(0, 5))
@settings(max_examples=60)
def test_plateau_is_torchs_reduce_on_plateau(losses, patience):
    parameter = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, factor=0.5, patience=patience, eps=0.0)
    for loss in losses:
        theirs.step(loss)
    ours = optim(kind="plateau", plateau_factor=0.5, plateau_patience=patience, final_ratio=0.0)
    assert learning_rate(ours, 10, 20, losses) == sgd.param_groups[0]["lr"]
    assert plateau_cuts(losses, patience) == round(-math.log2(sgd.param_groups[0]["lr"]))


def test_plateau_stops_at_the_floor():
    settings = optim(kind="plateau", plateau_patience=0, final_ratio=0.3)
    assert learning_rate(settings, 1, 2, [1.0] * 30) == pytest.approx(0.3)
