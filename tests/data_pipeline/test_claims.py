"""Claims: one holder at a time, the next one when that is dead, and an end to trying."""

from __future__ import annotations

import json
import threading
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.claims import CLAIMS, TASKS, Claims, Patience, end, make_once, read_object
from data_pipeline.errors import DataError

PATIENCE = Patience(silent_s=60.0, pause_s=20.0, tries=3)


class Folder:
    """A launch's folder with a clock, and tasks that beat when they are told."""

    def __init__(self, path):
        self.path, self.now = path, 0.0
        for name in (CLAIMS, TASKS):
            (path / name).mkdir(exist_ok=True)

    def task(self, name, life="1"):
        return Claims(self.path, name, life, PATIENCE, lambda: self.now)

    def beat(self, name, count, life="1"):
        (self.path / TASKS / f"{name}.json").write_text(json.dumps({"life": life, "beat": count}))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_of_many_who_claim_at_once_each_unit_has_one(folder):
    units = [f"spool-{n:05d}" for n in range(60)]
    got = [[] for _ in range(6)]

    def go(number):
        claims = folder.task(f"t{number}")
        while (unit := claims.take(units)) is not None:
            got[number].append(unit)

    threads = [threading.Thread(target=go, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(chain.from_iterable(got)) == units


def test_a_holder_that_is_silent_loses_its_unit_and_one_that_beats_keeps_it(folder):
    alive, dead, other = folder.task("alive"), folder.task("dead"), folder.task("other")
    assert (alive.take(["a", "b"]), dead.take(["a", "b"])) == ("a", "b")
    for minute in range(0, 120, 10):
        folder.now = float(minute)
        folder.beat("alive", minute)
        taken = other.take(["a", "b"])
        assert taken == ("b" if minute >= 60 else None)
        if taken:
            break
    assert other.take(["a", "b"]) is None and folder.task("third").take(["b"]) is None


def test_a_new_life_of_a_task_takes_up_what_the_old_one_held_at_once_and_so_do_others(folder):
    old = folder.task("t", life="1")
    assert [old.take(["a", "b"]), old.take(["a", "b"])] == ["a", "b"]
    folder.beat("t", 1, life="2")
    assert folder.task("t", life="2").take(["a"]) == "a"
    assert folder.task("other").take(["b"]) == "b"


def test_of_two_who_see_a_claim_go_stale_one_gets_it(folder):
    folder.task("dead").take(["a"])
    one, two = folder.task("one"), folder.task("two")
    assert one.take(["a"]) is None and two.take(["a"]) is None
    folder.now = 61.0
    assert one.take(["a"]) == "a" and two.take(["a"]) is None
    folder.now = 100.0
    folder.beat("one", 1)
    assert two.take(["a"]) is None, "the new holder's time counts from when it was first seen"


def test_what_is_released_is_free_at_once_and_what_failed_after_a_pause(folder):
    one, two = folder.task("one"), folder.task("two")
    one.take(["a"])
    one.release()
    assert two.take(["a"]) == "a"
    two.fail("a", "the disk is full.")
    assert one.take(["a"]) is None
    folder.now = 21.0
    assert one.take(["a"]) == "a" and one.units() == ["a"]
    one.done("a")
    assert one.units() == []


def test_a_unit_that_keeps_failing_ends_the_build_with_the_last_reason(folder):
    claims = folder.task("t")
    for number in range(3):
        assert claims.take(["a"]) == "a"
        claims.fail("a", f"reason {number}.")
        assert claims.take(["a"]) is None, "it is tried again after a pause"
        folder.now += 21.0
    with pytest.raises(DataError, match="unit a has failed 3 times, the last time: reason 2; if memory"):
        claims.take(["a"])


def test_a_unit_that_kills_whoever_does_it_ends_the_build_too(folder):
    for life in "123":
        assert folder.task("t", life).take(["a"]) == "a"
    with pytest.raises(DataError, match="failed 3 times, the last time: whoever did it was killed"):
        folder.task("t", "4").take(["a"])


def test_a_file_is_made_once_and_whole_also_without_links(folder, monkeypatch):
    path = folder.path / "x"
    assert make_once(path, "one") and not make_once(path, "two") and path.read_text() == "one"
    monkeypatch.setattr("os.link", _no_links)
    assert not make_once(path, "two") and make_once(folder.path / "y", "three")
    assert {p.name for p in folder.path.iterdir()} == {CLAIMS, TASKS, "x", "y"}
    end(folder.path, "built", "well", "t")
    end(folder.path, "failed", "too late", "u")
    assert read_object(folder.path / "end.json")["words"] == "well" and read_object(path) == {}


def _no_links(*_):
    raise PermissionError(1, "no links here")


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("takendfailrelease"), st.integers(0, 30)), max_size=40))
def test_a_unit_never_has_two_living_holders(tmp_path_factory, steps):
    folder = Folder(tmp_path_factory.mktemp("claims"))
    tasks = [folder.task(f"t{n}") for n in range(3)]
    for count, (number, action, seconds) in enumerate(steps):
        folder.now += seconds
        for other in range(3):
            folder.beat(f"t{other}", count)
        held = tasks[number].units()
        try:
            if action in "release":
                tasks[number].release()
            elif action in "fail" and held:
                tasks[number].fail(held[0], "why")
            else:
                tasks[number].take(["a", "b"])
        except DataError:
            return
        both = [unit for task in tasks for unit in task.units()]
        assert len(both) == len(set(both))
