from __future__ import annotations

import json

import torch

from pretrain.heartbeat import WINDOW, Heartbeat
from pretrain.own_time import OwnTime


def told(folder):
    return json.loads((folder / "rank-3.json").read_text())


def test_a_rank_tells_its_own_part_of_a_step_once_it_has_done_enough(tmp_path):
    heartbeat = Heartbeat(tmp_path, 3)
    heartbeat.beat("train", 1, 100.0)  # the first step compiles
    assert told(tmp_path)["compute_s"] is None
    for step in range(2, 2 + WINDOW):
        heartbeat.beat("train", step, 0.5 if step % 2 else 0.7)
    heartbeat.beat("save", 40)
    assert 0.5 <= told(tmp_path)["compute_s"] <= 0.7 and told(tmp_path)["phase"] == "save"


def test_what_is_not_measured_is_not_told(tmp_path):
    heartbeat = Heartbeat(tmp_path, 3)
    for step in range(2 * WINDOW):
        heartbeat.beat("train", step)
    heartbeat.beat("done", 40)
    assert told(tmp_path)["compute_s"] is None


def test_own_time_counts_what_is_inside_and_begins_anew(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 10.5, 20.0, 23.0])
    monkeypatch.setattr("pretrain.own_time.time.perf_counter", lambda: next(clock))
    own = OwnTime(torch.device("cpu"))
    for _ in range(2):
        with own:
            pass
    assert own.reading() == 1.5
    with own:
        pass
    assert own.reading() == 3.0 and own.reading() == 0.0


def test_on_a_gpu_events_are_used_again_and_nothing_waits(monkeypatch):
    made = []

    class Event:
        def __init__(self, enable_timing):
            made.append(self)
            self.at = None

        def record(self):
            self.at = len(made) * 1000.0

        def elapsed_time(self, other):
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    own = OwnTime(torch.device("cuda"))
    for _ in range(3):
        for _ in range(2):
            with own:
                pass
        assert own.reading() == 0.5
    assert len(made) == 4, "two for each pass of a step"
