"""What a run's wall time went into, by records of the test's own."""

from __future__ import annotations

import json

import pytest

from cluster.progress import read_progress


def train(step, when, tokens_per_s=10.0, tokens=10):
    return {"kind": "train", "step": step, "time": when, "loss": 2.0, "tokens": tokens, "tokens_seen": step * tokens,
            "tokens_per_s": tokens_per_s}  # fmt: skip


def write(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


def test_each_part_of_the_wall_time_has_its_name(tmp_path):
    startup = {
        "kind": "event",
        "event": "startup",
        "step": 1,
        "time": 1003.0,
        "seconds": {"imports": 2.0, "data": 1.0, "first step": 9.0},
    }
    saved = {"kind": "event", "event": "checkpoint", "step": 4, "time": 1007.0, "stall_s": 0.5, "seconds": 3.0}
    started = {"kind": "event", "event": "start", "step": 0, "time": 1000.0}
    write(tmp_path / "metrics.jsonl", started, startup, *(train(s, 1003.0 + s) for s in range(1, 5)), saved,
          {**startup, "time": 1020.0}, train(6, 1022.0))  # fmt: skip
    write(tmp_path / "metrics.superseded.jsonl", train(5, 1008.0), train(6, 1009.0, tokens_per_s=5.0))
    went = read_progress(tmp_path, 10, None)
    assert (went.step, went.tokens, went.eta_s) == (6, 60, 4.0)
    assert went.wall_s == 31.0  # from the birth of the first process, 12 s before its first step was on record
    assert went.parts_s == {
        "steps": 4.0 + 2.0,  # the record of step 6 tells the rate since that of step 4
        "steps taken twice": 1.0 + 2.0,
        "starts": 6.0,
        "waits for checkpoints": 0.5,
    }
    assert went.goodput == pytest.approx(6.0 / 31.0)
    assert read_progress(tmp_path, 10, 1044.0).wall_s == 53.0  # it is still meant to run


def test_nothing_yet(tmp_path):
    went = read_progress(tmp_path, 10, 5.0)
    assert (went.step, went.eta_s, went.goodput) == (0, None, None)
