from __future__ import annotations

import json
from types import SimpleNamespace

from pretrain.quarantine import QuarantineList, read_quarantine


def corpus(*blocks):
    records = [{"split": "train", "block": block, "tokens": 9} for block in blocks]
    split = SimpleNamespace(has_quarantined=bool(records), quarantined=records)
    dataset = SimpleNamespace(split_names=("train",), split=lambda name: split)
    return SimpleNamespace(datasets={"data": dataset})


def test_each_block_is_listed_once_whoever_meets_it_and_however_often(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    QuarantineList(path, corpus(), 0).note(1)
    assert not path.exists()
    for step in (3, 4):
        QuarantineList(path, corpus(5, 7), 0).note(step)
    assert [(r["block"], r["noted_at_step"]) for r in read_quarantine(path)] == [(5, 3), (7, 3)]


def test_a_line_torn_by_a_kill_takes_no_other_with_it(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    path.write_text(json.dumps({"dataset": "data", "split": "train", "block": 5}) + "\n" + '[1]\n{"x": 1}\n{"data')
    QuarantineList(path, corpus(5, 8), 1).note(9)
    assert [r["block"] for r in read_quarantine(path)] == [5, 8]
