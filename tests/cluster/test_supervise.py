"""The supervisor's judgement, on a clock and processes of the test's own; `tests/e2e` has real ones."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from cluster import supervise
from cluster.policy import Budget
from cluster.run_files import START, events
from cluster.supervise import Limits, NoPlace, Owner, Supervisor


class World(Owner):
    """A run's folder, a clock that only sleeping moves, and starts that play scripts."""

    def __init__(self, folder, monkeypatch, *scripts):
        self.folder, self.now, self.scripts, self.starts, self.killed = folder, 100.0, list(scripts), 0, []
        self.stacks = []
        monkeypatch.setattr(supervise.time, "monotonic", lambda: self.now)

    def sleep(self, seconds):
        self.now += seconds

    def start(self):
        self.starts += 1
        (self.folder / "generations").mkdir(exist_ok=True)
        mark = Path(os.environ[START]).stem
        (self.folder / "generations" / f"{self.starts:06d}.json").write_text(json.dumps({"mark": mark}))
        return Played(self, self.scripts.pop(0)(self), self.now)

    def leave(self, kind, rank=0, **more):
        folder = self.folder / "exits" / f"{self.starts:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rank-{rank}.json").write_text(json.dumps({"rank": rank, "kind": kind, "time": self.now, **more}))

    def beat(self, rank, step, phase="train", start=0):
        (self.folder / "heartbeats").mkdir(exist_ok=True)
        beat = {
            "rank": rank,
            "host": f"n{rank}",
            "phase": phase,
            "step": step,
            "time": self.now + 1e6 * rank,
            "start": start,
        }
        (self.folder / "heartbeats" / f"rank-{rank}.json").write_text(json.dumps(beat))

    def checkpoint(self, step):
        (self.folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)

    def supervisor(self, budget=None, **told):
        vars(self).update(told)  # what the test itself wants to hear
        return Supervisor(self.folder, 2, self, Limits({"train": 10.0, "": 60.0}), budget, self.sleep)


class Played:
    """A start: a generator that yields while it runs and returns a code."""

    def __init__(self, world, script, began):
        self.world, self.script, self.code = world, script, None

    def poll(self):
        if self.code is None:
            try:
                next(self.script)
            except StopIteration as end:
                self.code = end.value or 0
        return self.code

    def signal(self, number):
        if number == signal.SIGUSR2:
            self.world.stacks.append(self.world.now)
            return True
        self.world.leave("stopped")
        self.world.leave("stopped", rank=1)
        self.code = 75
        return True

    def kill(self):
        self.world.killed.append(self.world.now)
        self.code = -9


def ends(kind, code, checkpoint=None, **more):
    def script(world):
        yield
        if checkpoint is not None:
            world.checkpoint(checkpoint)
        world.leave(kind, **more)
        return code

    return script


def test_it_starts_again_until_the_run_is_done(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch, ends("failed", 1, words="a"), ends("hang", 75), ends("done", 0))
    assert world.supervisor().supervise() == 0
    ended = [e for e in events(tmp_path) if e["event"] == "end"]
    assert [(e["start"], e["cause"]["kind"], e["decision"]) for e in ended] == [
        (1, "failed", "relaunch"),
        (2, "hang", "relaunch"),
        (3, "done", "finish"),
    ]


def test_a_budget_without_progress_ends_and_progress_renews_it(tmp_path, monkeypatch):
    scripts = [ends("killed", -9, words=str(n)) for n in range(3)]
    world = World(tmp_path, monkeypatch, *scripts)
    assert world.supervisor(budget=Budget(relaunches=2)).supervise() == 1
    assert "without a new checkpoint" in events(tmp_path)[-1]["words"]
    (other := tmp_path / "other").mkdir()
    further = [ends("killed", -9, checkpoint=n, words=str(n)) for n in range(6)]
    world = World(other, monkeypatch, *further, ends("done", 0))
    assert world.supervisor(budget=Budget(relaunches=2)).supervise() == 0


def test_a_start_without_any_sign_of_life_is_ended_too(tmp_path, monkeypatch):
    def nothing(world):
        while True:
            yield

    world = World(tmp_path, monkeypatch, nothing, ends("done", 0))
    assert world.supervisor().supervise() == 0
    assert 62 < world.killed[0] - 100 < 64
    assert "No rank has given a sign of life" in events(tmp_path)[0]["cause"]["words"]


def test_a_rank_that_has_ended_is_not_silent(tmp_path, monkeypatch):
    def slow_end(world):
        for rank in range(2):
            world.beat(rank, 9, "done")
        for _ in range(200):
            yield
        world.leave("done")
        return 0

    world = World(tmp_path, monkeypatch, slow_end)
    assert world.supervisor().supervise() == 0
    assert world.killed == []


def test_nowhere_to_start_is_handed_over(tmp_path, monkeypatch):
    def nowhere(world):
        raise NoPlace("2 of 4 nodes answer")

    world = World(tmp_path, monkeypatch, nowhere)
    assert world.supervisor().supervise() == 75
    assert events(tmp_path)[-1]["words"] == "2 of 4 nodes answer"


def test_a_wish_to_stop_is_passed_on_once(tmp_path, monkeypatch):
    def patient(world):
        yield
        supervisor._on_signal(15, None)
        while True:
            yield

    world = World(tmp_path, monkeypatch, patient)
    supervisor = world.supervisor()
    assert supervisor.supervise() == 75
    assert events(tmp_path)[-1]["cause"]["kind"] == "stopped"


@pytest.mark.parametrize("text", ["", "{", '{"rank": 0}', "[]", "null"])
def test_torn_heartbeats_are_none(tmp_path, monkeypatch, text):
    (tmp_path / "heartbeats").mkdir()
    (tmp_path / "heartbeats" / "rank-0.json").write_text(text)
    world = World(tmp_path, monkeypatch, ends("done", 0))
    assert world.supervisor().supervise() == 0


def test_a_wish_to_stop_ends_a_pause(tmp_path, monkeypatch):
    scripts = [ends("killed", -9, words=str(n)) for n in range(4)]
    world = World(tmp_path, monkeypatch, *scripts)

    def sleep(seconds):
        world.sleep(seconds)
        if world.starts == 3 and seconds and world.now > ended_at[-1] + 1.0:
            supervisor._on_signal(10, None)

    ended_at = []
    world.judged = lambda *_: ended_at.append(world.now)
    supervisor = Supervisor(tmp_path, 2, world, Limits({"": 60.0}), Budget(9, 60.0, 600.0), sleep)
    assert supervisor.supervise() == 75
    assert world.starts == 3 and world.now < ended_at[-1] + 2.0, "the pause would have been of two minutes"


def test_a_signal_that_reaches_nobody_yet_is_sent_again(tmp_path, monkeypatch):
    def patient(world):
        supervisor._on_signal(10, None)
        while True:
            yield

    class Late(Played):
        """A start whose ranks are not there yet when the first two signals come."""

        tries = 0

        def signal(self, number):
            self.tries += 1
            return super().signal(number) if self.tries == 3 else False

    monkeypatch.setitem(globals(), "Played", Late)
    world = World(tmp_path, monkeypatch, patient)
    supervisor = world.supervisor()
    assert supervisor.supervise() == 75
    assert 102 <= world.now < 105, "once a second"


def test_a_wish_before_the_first_start_starts_nothing(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    supervisor = world.supervisor()
    supervisor._on_signal(15, None)
    assert supervisor.supervise() == 75 and world.starts == 0


@pytest.mark.parametrize(("kind", "starts"), [("bad input", 1), ("busy", 3)])
def test_what_ranks_say_that_could_not_join_decides(tmp_path, monkeypatch, kind, starts):
    class Refused(World):
        def start(self):
            self.starts += 1
            return Played(self, self.scripts.pop(0)(self), self.now)

    def refuses(world):
        yield
        path = Path(os.environ[START])
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"kind": kind, "words": "The dataset is not there.", "time": 1}))
        return 1

    world = Refused(tmp_path, monkeypatch, refuses, refuses, refuses)
    assert world.supervisor(budget=Budget(2)).supervise() == 1
    assert world.starts == starts and "The dataset is not there." in events(tmp_path)[-1]["words"]


def test_a_time_that_is_up_ends_the_ranks_and_is_told_once_they_know(tmp_path, monkeypatch):
    def patient(world):
        while True:
            yield

    told = []
    world = World(tmp_path, monkeypatch, patient)
    due = iter([None, None, 10])
    assert world.supervisor(due=lambda: next(due), wished=told.append).supervise() == 75
    assert told == [10] and 102 <= world.now < 104


def test_ranks_that_have_said_why_they_left_are_not_waited_for_without_end(tmp_path, monkeypatch):
    def never_buried(world):
        world.leave("done")
        world.leave("done", rank=1)
        while True:
            yield

    world = World(tmp_path, monkeypatch, never_buried)
    assert world.supervisor().supervise() == 0
    assert 160 <= world.killed[0] < 163


def test_a_supervisor_that_stood_still_blames_nobody_for_it(tmp_path, monkeypatch):
    def suspended(world):
        world.beat(0, 5)
        for _ in range(10):
            yield
        world.now += 500.0  # the whole job
        for step in range(6, 9):
            yield
            world.beat(0, step)
        world.leave("done")
        return 0

    world = World(tmp_path, monkeypatch, suspended)
    assert world.supervisor().supervise() == 0
    assert world.killed == []


def test_what_goes_before_the_ranks_is_no_silence_of_theirs(tmp_path, monkeypatch):
    def quiet(world):
        for _ in range(200):
            yield
        world.leave("done")
        world.leave("done", rank=1)
        return 0

    world = World(tmp_path, monkeypatch, quiet)
    start = world.start

    def after_a_look():
        world.now += 50.0  # of the 60 s that ranks have to give a sign of life
        return start()

    world.start = after_a_look
    assert world.supervisor().supervise() == 0 and world.starts == 1


def test_a_straggler_is_recorded_once_a_start(tmp_path, monkeypatch):
    def trains(world):
        for step in range(20):
            for rank, own in ((0, 0.1), (1, 0.4)):
                world.beat(rank, step)
                path = world.folder / "heartbeats" / f"rank-{rank}.json"
                path.write_text(json.dumps({**json.loads(path.read_text()), "compute_s": own}))
            for _ in range(6):
                yield
        return 1

    heard = []
    world = World(tmp_path, monkeypatch, trains, trains, ends("done", 0))
    assert world.supervisor(straggles=heard.append).supervise() == 0
    recorded = [e for e in events(tmp_path) if e["event"] == "straggler"]
    assert [(e["start"], e["rank"], e["host"]) for e in recorded] == [(1, 1, "n1"), (2, 1, "n1")]
    assert [one.rank for one in heard] == [1, 1] and "4.00 times the median" in recorded[0]["words"]
