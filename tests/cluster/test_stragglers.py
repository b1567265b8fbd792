"""Who holds the others up, from heartbeats."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from cluster.run_files import heartbeats
from cluster.stragglers import BEATS, StragglerWatch, stragglers


def beat(rank, compute_s, host=None, phase="train", time=0.0):
    return {"rank": rank, "host": host or f"n{rank}", "phase": phase, "compute_s": compute_s, "time": time}


def test_a_slow_rank_is_named_with_its_host_and_the_median():
    (found,) = stragglers([beat(0, 0.1), beat(1, 0.1), beat(2, 0.15), beat(3, 0.11)])
    assert (found.rank, found.host, found.alone) == (2, "n2", False)
    assert "rank 2 on n2 computes 150 ms in a step, 1.50 times the median of all ranks (100 ms)" in found.words


def test_a_slow_node_of_two_and_a_slow_rank_beside_a_good_one():
    both = stragglers([beat(0, 0.1, "a"), beat(1, 0.1, "a"), beat(2, 0.2, "b"), beat(3, 0.3, "b")])
    assert [one.rank for one in both] == [3, 2] and not any(one.alone for one in both)
    (one,) = stragglers([beat(0, 0.1, "a"), beat(1, 0.2, "a"), beat(2, 0.1, "b"), beat(3, 0.1, "b")])
    assert one.alone and "unlike others there" in one.words
    assert [one.rank for one in stragglers([beat(0, 0.1), beat(1, 0.2)])] == [1], "of two the faster is the measure"


def test_ranks_that_say_nothing_or_do_something_else_are_no_measure():
    assert stragglers([beat(0, 0.1), beat(1, None), beat(2, 9.0, phase="validate")]) == []
    assert stragglers([]) == []


@given(st.lists(st.floats(1.0, 1.29), min_size=1, max_size=50))
def test_ordinary_spread_is_no_straggler(times):
    assert stragglers([beat(rank, time) for rank, time in enumerate(times)]) == []


def test_the_watch_tells_once_and_only_of_what_lasts():
    watch = StragglerWatch()

    def look(now, slow):
        return watch.look([beat(0, 0.1, time=now), beat(1, 0.3 if slow else 0.1, time=now)])

    assert not any(look(now, True) for now in range(BEATS - 1))
    assert not look(BEATS - 2, True), "the same heartbeat again is no news"
    assert not look(BEATS - 1, False)
    assert not any(look(100 + now, True) for now in range(BEATS - 1))
    assert [one.rank for one in look(100 + BEATS, True)] == [1]
    assert not any(look(200 + now, True) for now in range(20))


def test_heartbeats_of_other_versions_are_read_too(tmp_path):
    (tmp_path / "heartbeats").mkdir()
    old = {"rank": 0, "host": "n0", "phase": "train", "step": 3, "time": 1.0}
    for rank, own in ((0, {}), (1, {"compute_s": 0.5}), (2, {"compute_s": "x"})):
        (tmp_path / "heartbeats" / f"rank-{rank}.json").write_text(json.dumps({**old, "rank": rank, **own}))
    assert [heartbeats(tmp_path)[rank]["compute_s"] for rank in range(3)] == [None, 0.5, None]
