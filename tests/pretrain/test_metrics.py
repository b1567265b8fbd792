from __future__ import annotations

import json
import math

import pytest

from pretrain import metrics


def write(path, steps):
    file = metrics.MetricsFile(path)
    for step in steps:
        file.write({"kind": "train", "step": step, "loss": 1.0 / step})
    file.close()


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, (1, 2))
    with path.open("a") as file:
        file.write('{"kind": "train", "st')
    assert [r["step"] for r in metrics.read(path)] == [1, 2]


def test_rewind_removes_the_future_and_keeps_it_aside(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert metrics.rewind(path, 0) == 0
    write(path, range(1, 8))
    with path.open("a") as file:
        file.write('{"half')
    assert metrics.rewind(path, 4) == 3
    write(path, (5,))
    assert [r["step"] for r in metrics.read(path)] == [1, 2, 3, 4, 5]
    superseded = tmp_path / "metrics.superseded.jsonl"
    assert [r["step"] for r in metrics.read(superseded)] == [5, 6, 7]


def test_not_a_number_is_written_as_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = metrics.MetricsFile(path)
    file.write({"kind": "train", "step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    file.close()
    assert json.loads(path.read_text()) == {"kind": "train", "step": 1, "loss": None, "grad_norm": None}


def test_throughput_counts_only_the_time_inside_steps(monkeypatch):
    clock = iter([0.0, 10.0, 12.0, 100.0, 102.0])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    throughput = metrics.Throughput()
    throughput.start()
    throughput.stop(tokens=100, waited_s=0.5)
    throughput.start()
    throughput.stop(tokens=100, waited_s=0.5)
    assert throughput.reading() == (50.0, 0.25)
    assert throughput.reading() == (0.0, 0.0)


@pytest.mark.parametrize(("reached", "peak", "share"), [(1e9, 4e9, 0.25), (0, 1, 0), (1, 1, 1)])
def test_utilisation(reached, peak, share):
    assert metrics.utilisation(reached, peak) == share


@pytest.mark.parametrize(("reached", "peak"), [(5e9, 4e9), (1, 0), (-1, 1), (float("nan"), 1)])
def test_a_utilisation_that_cannot_be_is_none(reached, peak):
    assert math.isnan(metrics.utilisation(reached, peak))
