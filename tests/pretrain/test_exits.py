"""Reasons of exit as files."""

from __future__ import annotations

import json

import pytest

from pretrain import exits


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch):
    monkeypatch.setattr(exits, "_place", exits._Place())


def test_the_first_reason_is_left_and_no_later_one(tmp_path):
    exits.register(tmp_path, 3, 1)
    exits.at(17)
    exits.note(1, "the disk is full")
    exits.note(76, "another rank left")
    record = json.loads((tmp_path / "000003" / "rank-1.json").read_text())
    assert record["kind"] == "failed" and record["words"] == "the disk is full"
    assert (record["rank"], record["generation"], record["step"], record["code"]) == (1, 3, 17, 1)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(0, "done"), (75, "stopped"), (2, "bad input"), (76, "peer lost"), (77, "overtaken"), (1, "failed")],
)
def test_kinds(tmp_path, code, kind):
    exits.register(tmp_path, 1, 0)
    exits.note(code, "words")
    assert json.loads((tmp_path / "000001" / "rank-0.json").read_text())["kind"] == kind


def test_without_a_run_nothing_is_written_and_a_place_that_cannot_be_written_is_no_error(tmp_path):
    exits.note(1, "words")
    (tmp_path / "file").write_text("")
    exits.register(tmp_path / "file", 1, 0)
    exits.note(1, "words")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
