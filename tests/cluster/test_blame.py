"""Whom a supervisor blames: which start is its own, which rank was behind, which node it ran on."""

from __future__ import annotations

import json

import pytest

from cluster.run_files import events
from cluster.supervise import Limits
from tests.cluster.test_supervise import World, ends


def test_the_silent_rank_is_named_by_steps_and_not_by_clocks(tmp_path, monkeypatch):
    def hangs(world):
        for rank in range(2):
            world.beat(rank, 1)
        yield
        world.beat(0, 5)  # it waits for rank 1, whose clock is eleven days ahead
        while True:
            yield

    world = World(tmp_path, monkeypatch, hangs, ends("done", 0))
    world.beat(0, 900)  # of an earlier life of the run
    assert world.supervisor().supervise() == 0
    silent = next(e for e in events(tmp_path) if e["event"] == "silent")
    assert (silent["cause"]["rank"], silent["cause"]["host"], silent["cause"]["step"]) == (1, "n1", 1)
    assert 12 < world.killed[0] - 100 < 15 and world.stacks == [world.killed[0] - 2.0], "stacks come first"


def test_a_rank_of_an_earlier_start_is_not_blamed_for_a_hang(tmp_path, monkeypatch):
    def hangs(world):
        for rank in range(2):
            world.beat(rank, 5)
        yield
        world.leave("hang", rank=0)
        return 75

    world = World(tmp_path, monkeypatch, hangs, ends("done", 0))
    world.beat(2, 1)  # on a node that is no longer used
    assert world.supervisor().supervise() == 0
    assert events(tmp_path)[0]["cause"]["rank"] == 1


def test_another_supervisors_start_is_not_taken_for_the_own_one(tmp_path, monkeypatch):
    def overtaken(world):
        yield
        (world.folder / "generations" / "000002.json").write_text('{"mark": "another"}')
        exits = world.folder / "exits" / "000002"
        exits.mkdir(parents=True)
        (exits / "rank-0.json").write_text('{"kind": "failed", "time": 1}')
        world.beat(0, 3, start=2)
        for _ in range(100):
            yield
        world.leave("overtaken")
        return 77

    world = World(tmp_path, monkeypatch, overtaken)
    assert world.supervisor().supervise() == 1
    (ended,) = [e for e in events(tmp_path) if e["event"] == "end"]
    assert (ended["start"], ended["cause"]["kind"]) == (1, "overtaken") and world.killed == []


def test_a_rank_whose_own_limit_has_come_down_is_given_less_time(tmp_path, monkeypatch):
    def hangs(world):
        world.beat(0, 5)
        path = world.folder / "heartbeats" / "rank-0.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "limit_s": 10.0}))
        while True:
            yield

    world = World(tmp_path, monkeypatch, hangs, ends("done", 0))
    supervisor = world.supervisor()
    supervisor.limits = Limits({"": 1000.0})
    assert supervisor.supervise() == 0
    assert 156 < world.killed[0] < 161


def test_a_rank_that_was_frozen_and_wakes_at_the_end_is_the_guilty_one(tmp_path, monkeypatch):
    def hangs(world):
        for rank in range(2):
            world.beat(rank, 20, "save")
        yield
        world.leave("hang", rank=0)
        world.leave("stopped", rank=1)
        return 75

    world = World(tmp_path, monkeypatch, hangs, ends("done", 0))
    assert world.supervisor().supervise() == 0
    assert (events(tmp_path)[0]["cause"]["rank"], events(tmp_path)[0]["cause"]["kind"]) == (1, "hang")


@pytest.mark.parametrize(("spoke", "host"), [([0], "n1"), ([], ""), ([0, 1], "n2")])
def test_the_node_of_a_rank_that_was_killed_is_known_where_the_others_spoke(tmp_path, monkeypatch, spoke, host):
    def killed(world):
        for rank in range(3 if len(spoke) == 2 else 2):
            world.beat(rank, 5)
        yield
        yield from [None] * 6
        for rank in spoke:
            world.leave("peer lost", rank=rank, host=f"n{rank}")
        return 1

    world = World(tmp_path, monkeypatch, killed, ends("done", 0))
    supervisor = world.supervisor()
    supervisor.ranks = 3 if len(spoke) == 2 else 2
    assert supervisor.supervise() == 0
    cause = next(e for e in events(tmp_path) if e["event"] == "end")["cause"]
    assert (cause["kind"], cause["host"]) == ("killed", host)
