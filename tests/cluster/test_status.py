from __future__ import annotations

import json
import time

import pytest

from cluster.errors import ClusterError
from cluster.status import read_status


def test_a_run_is_read_from_its_files_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("train: {steps: 100}\n")
    records = [{"kind": "train", "step": s, "loss": 2.0, "tokens_per_s": 10.0} for s in (1, 2)]
    lines = [json.dumps(r) for r in [*records, {"kind": "validation", "step": 2}]]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "tr']))
    (tmp_path / "checkpoints" / "step-00000002").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000003.damaged-1").mkdir()
    (tmp_path / "heartbeats").mkdir()
    beat = {"rank": 1, "host": "n1", "pid": 7, "phase": "train", "step": 2, "time": time.time() - 5}
    (tmp_path / "heartbeats" / "rank-1.json").write_text(json.dumps(beat))
    blocks = [{"dataset": "data", "split": "train", "block": block} for block in (3, 5, 3)]
    (tmp_path / "quarantine.jsonl").write_text("".join(json.dumps(b) + "\n" for b in blocks) + '{"data')
    events = [{"event": "start", "start": 1}, {"event": "end", "start": 1, "decision": "relaunch"}]
    (tmp_path / "supervisor.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events) + '{"ev')
    status = read_status(tmp_path)
    assert status.quarantined == 2 and status.ends == events[1:] and status.causes == {"None": 1}
    went = status.progress
    assert (went.step, went.steps, went.loss, status.checkpoints, status.whole) == (2, 100, 2.0, [2], None)
    assert status.as_dict()["step"] == 2 and "progress" not in status.as_dict()
    assert status.ranks[0].host == "n1"
    assert 4 < status.ranks[0].age_s < 60


def test_why_the_newest_start_ended(tmp_path):
    (tmp_path / "config.yaml").write_text("train: {steps: 100}\n")
    for start in (1, 2):
        for folder in ("generations", f"exits/{start:06d}"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "generations" / f"{start:06d}.json").write_text("{}")
    assert read_status(tmp_path).exits == []
    for rank, kind, when in ((0, "peer lost", 20.0), (1, "failed", 10.0)):
        note = {"rank": rank, "kind": kind, "words": "words", "time": when}
        (tmp_path / "exits" / "000002" / f"rank-{rank}.json").write_text(json.dumps(note))
    (tmp_path / "exits" / "000002" / "rank-2.json").write_text('{"ra')
    status = read_status(tmp_path)
    assert status.starts == 2
    assert [note["rank"] for note in status.exits] == [1, 0], "the first cause by time comes first"


def test_another_folder_is_one_sentence(tmp_path):
    with pytest.raises(ClusterError, match="not a run directory"):
        read_status(tmp_path)
