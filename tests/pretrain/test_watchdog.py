"""The watchdog: limits by phase, who is behind, and what it leaves."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest

from pretrain import exits, watchdog
from pretrain.config import WatchdogConfig
from pretrain.heartbeat import Heartbeat
from pretrain.watchdog import Watchdog

LIMITS = WatchdogConfig(start_s=40, step_s=10, save_s=20, validate_s=30)


@pytest.fixture
def heartbeat(tmp_path):
    return Heartbeat(tmp_path, 0, limits=LIMITS)


@pytest.mark.parametrize(
    ("phase", "limit"), [("start", 40), ("convert", 40), ("train", 10), ("save", 20), ("validate", 30)]
)
def test_each_phase_has_its_limit(heartbeat, tmp_path, phase, limit):
    dog = Watchdog(heartbeat, tmp_path)
    heartbeat.beat(phase, 7)
    heartbeat.last_seen = time.monotonic() - limit + 1
    assert dog.overdue() == ""
    heartbeat.last_seen = time.monotonic() - limit - 1
    assert f"in phase {phase}, whose limit is {limit} s" in dog.overdue()
    heartbeat.beat(phase, 8)
    assert dog.overdue() == "", "a sign of life, even if no file was written for it"


@pytest.mark.parametrize("phase", ["done", "stopped"])
def test_a_run_that_has_ended_is_not_watched(heartbeat, tmp_path, phase):
    heartbeat.beat(phase, 7)
    heartbeat.last_seen = time.monotonic() - 1e6
    assert Watchdog(heartbeat, tmp_path).overdue() == ""


def test_zero_is_never(tmp_path):
    heartbeat = Heartbeat(tmp_path, 0, limits=WatchdogConfig(start_s=0))
    heartbeat.last_seen = time.monotonic() - 1e6
    assert Watchdog(heartbeat, tmp_path).overdue() == ""


def test_the_rank_that_is_furthest_behind_is_named(heartbeat, tmp_path):
    heartbeat.beat("train", 12)
    Heartbeat(tmp_path, 1).beat("train", 11)
    Heartbeat(tmp_path, 2).beat("train", 12)
    (tmp_path / "rank-3.json").write_text("half a li")
    heartbeat.last_seen = time.monotonic() - 99
    assert "furthest behind is rank 1 on " in Watchdog(heartbeat, tmp_path).overdue()


def test_it_writes_the_stacks_and_the_reason_and_leaves(heartbeat, tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "TICK_S", 0.01)
    monkeypatch.setattr(watchdog, "OTHERS_S", 0.0)
    monkeypatch.setattr(exits, "_place", exits._Place())
    exits.register(tmp_path / "exits", 1, 0)
    codes: list[int] = []
    left = threading.Event()

    def leave(code: int) -> None:
        codes.append(code)
        left.set()

    heartbeat.beat("train", 3)
    heartbeat.last_seen = time.monotonic() - 99
    with Watchdog(heartbeat, tmp_path, leave):
        assert left.wait(30)
    assert codes == [75]
    stacks = (tmp_path / "stacks-rank-0.txt").read_text()
    assert "has been silent" in stacks and "test_it_writes_the_stacks" in stacks
    assert json.loads((tmp_path / "exits" / "000001" / "rank-0.json").read_text())["kind"] == "hang"


def test_a_disk_that_refuses_does_not_keep_a_hung_rank_alive(heartbeat, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(watchdog, "TICK_S", 0.01)
    monkeypatch.setattr(watchdog, "OTHERS_S", 0.0)
    left = threading.Event()
    heartbeat.beat("train", 3)
    heartbeat.last_seen = time.monotonic() - 99
    with Watchdog(heartbeat, tmp_path / "missing", lambda code: left.set()):
        assert left.wait(30)
    assert "has been silent" in caplog.text and "could not be written" in caplog.text, "the words are not lost"


def test_time_in_which_the_process_stood_still_is_no_silence(heartbeat, tmp_path, monkeypatch, caplog):
    """As in a job that was suspended: the thread wakes late, and so does the rank."""
    clock, ticks = [time.monotonic()], []
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock[0])
    heartbeat.beat("train", 3)

    class Sleep:
        """Of half a second, and once of a hundred; then the test is over."""

        def wait(self, seconds):
            ticks.append(seconds)
            clock[0] += 100.0 if len(ticks) == 3 else seconds
            return len(ticks) == 6

        set = wait

    dog = Watchdog(heartbeat, tmp_path, lambda code: pytest.fail("it ended the rank"))
    dog._ended = Sleep()
    dog._watch()
    assert len(ticks) == 6 and "stood still for 100 s" in caplog.text
    assert dog.overdue() == ""


def test_a_supervisor_can_ask_for_the_stacks(heartbeat, tmp_path):
    with Watchdog(heartbeat, tmp_path):
        os.kill(os.getpid(), signal.SIGUSR2)
        assert "test_a_supervisor_can_ask" in (tmp_path / "stacks-rank-0.txt").read_text()
