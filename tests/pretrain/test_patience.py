"""Limits that follow what a rank takes when it is well."""

from __future__ import annotations

import json
import time

import pytest

from pretrain import heartbeat as module
from pretrain.config import WatchdogConfig
from pretrain.heartbeat import Heartbeat
from pretrain.patience import Patience
from pretrain.watchdog import Watchdog

LIMITS = WatchdogConfig(step_s=900, save_s=600, start_s=1800, least_s=60, times=20)


def after(phase, count, seconds):
    patience = Patience(LIMITS)
    for _ in range(count):
        patience.was_silent(phase, seconds)
    return patience.of(phase)


@pytest.mark.parametrize(
    ("phase", "count", "seconds", "limit"),
    [
        ("train", 19, 5.0, 900),  # too few to know
        ("train", 20, 5.0, 100),
        ("train", 20, 0.1, 60),  # never less
        ("train", 20, 100.0, 900),  # never more
        ("save", 2, 10.0, 600),
        ("save", 3, 10.0, 200),
        ("start", 99, 0.1, 1800),  # a start is no routine
        ("done", 99, 0.1, 0),
    ],
)
def test_the_limit_follows_the_median_between_bounds(phase, count, seconds, limit):
    assert after(phase, count, seconds) == limit


def test_a_slow_minority_changes_nothing_and_a_slower_run_moves_it():
    patience = Patience(LIMITS)
    for seconds in [5.0] * 40 + [50.0] * 10:
        patience.was_silent("train", seconds)
    assert patience.of("train") == 100
    for _ in range(30):
        patience.was_silent("train", 20.0)
    assert patience.of("train") == 400


def test_it_can_be_turned_off():
    patience = Patience(LIMITS.model_copy(update={"times": 0.0}))
    for _ in range(50):
        patience.was_silent("train", 1.0)
    assert patience.of("train") == 900


def test_beats_teach_it_and_tell_it(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    beats = Heartbeat(tmp_path, 0, limits=LIMITS)
    for step in range(1, 23):
        clock[0] += 4.0
        beats.beat("train", step)
    beats.beat("save", 22)  # a new phase is written at once
    beats.beat("train", 22)
    assert json.loads((tmp_path / "rank-0.json").read_text())["limit_s"] == 80
    beats.last_seen = time.monotonic() - 81
    assert "whose limit is 80 s (20 times what it takes" in Watchdog(beats, tmp_path).overdue()
