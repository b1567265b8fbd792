"""What a run's folder says to those who watch it."""

from __future__ import annotations

import json
import threading

from cluster import run_files


def beat(rank):
    return json.dumps({"rank": rank, "host": "n1", "phase": "train", "step": 3, "time": 1.0, "start": 1})


def test_thousands_of_heartbeats_are_read_like_a_few(tmp_path):
    folder = tmp_path / "heartbeats"
    folder.mkdir()
    for rank in range(2000):
        (folder / f"rank-{rank}.json").write_text(beat(rank))
    (folder / "rank-2000.json").write_text(beat(2000)[:30])
    (folder / "rank-2001.json").write_bytes(b"\xff\xfe")
    (folder / ".rank-2002.json.17").write_text(beat(2002))
    found = run_files.heartbeats(tmp_path)
    assert sorted(found) == list(range(2000)) and all(found[rank]["rank"] == rank for rank in found)


def test_files_of_many_ranks_are_read_at_once(tmp_path, monkeypatch):
    """On a network file system a supervisor that reads them in turn is never done."""
    folder = tmp_path / "exits" / "000001"
    folder.mkdir(parents=True)
    for rank in range(256):
        (folder / f"rank-{rank}.json").write_text(json.dumps({"rank": rank, "time": -rank}))
    together = threading.Barrier(run_files._READERS, timeout=60)
    read = run_files._object

    def read_together(path):
        together.wait()
        return read(path)

    monkeypatch.setattr(run_files, "_object", read_together)
    assert [note["rank"] for note in run_files.exit_notes(tmp_path, 1)] == list(range(255, -1, -1))
