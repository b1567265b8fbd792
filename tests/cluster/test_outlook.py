"""What state a run is in and what happens next, from files of the test's own."""

from __future__ import annotations

import json
import time

import pytest

from cluster.outlook import look_out


def write(run, events=(), phase=None, age=0.0, note=None):
    run.mkdir(exist_ok=True)
    (run / "supervisor.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    if phase is not None:
        for name in ("heartbeats", "generations"):
            (run / name).mkdir(exist_ok=True)
        (run / "generations" / "000001.json").write_text("{}")
        beat = {"rank": 0, "host": "n1", "phase": phase, "step": 25, "time": time.time() - age, "start": 1}
        (run / "heartbeats" / "rank-0.json").write_text(json.dumps(beat))
    if note is not None:
        (run / "exits" / "000001").mkdir(parents=True)
        (run / "exits" / "000001" / "rank-0.json").write_text(json.dumps({"rank": 0, "kind": note, "time": 1.0}))


START = {"event": "start", "start": 1, "time": 0.0}
FOLLOWS = {"event": "successor", "job": "8"}
DROPPED = {"event": "no successor", "job": "8"}


def ended(decision, kind="killed", **more):
    known = {"event": "end", "decision": decision, "cause": {"kind": kind}, "words": "Rank 1 left no reason."}
    return {**known, **more}


@pytest.mark.parametrize(
    ("events", "phase", "age", "state", "words"),
    [
        ([FOLLOWS, START], "train", 0, "training", "of step 40; job 8 goes on when"),
        ([FOLLOWS, START, DROPPED], "save", 0, "saving", "of step 40."),
        ([FOLLOWS, START], "train", 500, "silent", "ends this start when it stays silent"),
        ([FOLLOWS, START, ended("relaunch", pause_s=4.0)], "train", 500, "starting again", "a pause of 4 s (Rank 1"),
        ([FOLLOWS, START, ended("hand over", "stopped")], "stopped", 1, "handed over", "Job 8 goes on when it gets"),
        ([START, ended("hand over", "stopped")], "stopped", 1, "stopped", "Start it again"),
        ([START, ended("give up")], "train", 500, "given up", "A person must look (Rank 1"),
        ([START, ended("finish", "done"), DROPPED], "done", 1, "done", "last step"),
        ([START, ended("finish", "stopped")], "stopped", 1, "resting", "until the run is launched again"),
        ([{"event": "rest", "words": "Job 7 was cancelled."}], None, 0, "resting", "Job 7 was cancelled"),
        ([{"event": "job", "job": "8"}], None, 0, "starting", "Job 8 looks at its nodes"),
        ([], None, 0, "new", "goes on from step 0"),
        ([], "train", 500, "stopped", "goes on from step 0"),
    ],
)  # fmt: skip
def test_state_and_what_comes_next(tmp_path, events, phase, age, state, words):
    write(tmp_path, events, phase, age)
    found = look_out(tmp_path, 100, 20)
    assert found.state == state and words in found.next


def test_a_launch_that_has_not_begun_is_queued(tmp_path):
    (tmp_path / "launch" / "000001").mkdir(parents=True)
    (tmp_path / "launch" / "000001" / "submitted.json").write_text('{"job": "7"}')
    found = look_out(tmp_path, 100, None)
    assert found.state == "queued" and "Job 7" in found.next
    assert look_out(tmp_path, 100, None, lambda job: "PENDING").state == "queued"
    gone = look_out(tmp_path, 100, None, lambda job: "FAILED")
    assert gone.state == "failed" and "job-7.out says why" in gone.next
    assert look_out(tmp_path, 100, None, lambda job: "").state == "failed"
    (tmp_path / "STOP").touch()
    assert look_out(tmp_path, 100, None).state == "resting"


def test_a_launch_after_an_end_waits_again(tmp_path):
    write(tmp_path, [{"event": "job", "job": "6"}, START, ended("finish", "done", cause={"kind": "done", "step": 100})])
    folder = tmp_path / "launch" / "000002"
    folder.mkdir(parents=True)
    (folder / "submitted.json").write_text('{"job": "7"}')
    assert look_out(tmp_path, 200, 20).state == "queued"


def test_ranks_that_a_supervisor_has_buried_do_not_train(tmp_path):
    write(tmp_path, [START, ended("relaunch", start=1)], "train")
    assert look_out(tmp_path, 100, 20).state == "starting again"


def test_a_run_that_was_stopped_in_the_middle_is_not_done(tmp_path):
    stopped = ended("finish", cause={"kind": "done", "step": 34, "words": "STOP"})
    write(tmp_path, [START, stopped], "stopped")
    (tmp_path / "STOP").touch()
    found = look_out(tmp_path, 100, 20)
    assert found.state == "resting" and "STOP is removed" in found.next


def test_a_stop_file_is_heard(tmp_path):
    write(tmp_path, [START], "train")
    (tmp_path / "STOP").touch()
    assert look_out(tmp_path, 100, 20).state == "stopping"


def test_a_run_that_nobody_supervised_is_done_by_its_own_word(tmp_path):
    write(tmp_path, phase="done", note="done")
    assert look_out(tmp_path, 100, 20).state == "done"
