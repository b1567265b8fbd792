"""The simulated cluster against closed forms, and against what must be true of any run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import intervals, simulation
from benchmarks.failures import DAY, FEWER, HANG, HOUR, KILLED, LOST, Costs, Faults, Simulation, job

COSTS = Costs(
    {LOST: 300.0, KILLED: 1.0, HANG: 300.0}, relaunch=200.0, queue=1800.0, stall=5.0, every=600.0, durable=60.0
)
FAULTS = Faults(500.0, {LOST: 0.4, KILLED: 0.4, HANG: 0.2}, lemon=20.0)


@pytest.mark.parametrize("mtbf", [11_000.0, 44_000.0, 350_000.0])
@pytest.mark.parametrize("every", [60.0, 600.0, 7200.0])
def test_goodput_of_an_interval_is_daly_s(mtbf, every):
    count = 40_000
    found = intervals.simulated(every, intervals.lifetimes(mtbf, count, 1), 5.0, 346.0)
    expected = intervals.closed_form(every, mtbf, 5.0, 346.0)
    assert found == pytest.approx(expected, abs=4.0 * every / mtbf / math.sqrt(count) + 1e-3)


@given(st.floats(3_000, 1e6), st.floats(1, 60))
def test_young_s_and_daly_s_intervals_are_as_good_as_the_best(mtbf, stall):
    line = intervals.grid(intervals.young(mtbf, stall) / 4, intervals.young(mtbf, stall) * 4, 200)
    best = max(intervals.closed_form(every, mtbf, stall, 300.0) for every in line)
    for every in (intervals.young(mtbf, stall), intervals.daly(mtbf, stall)):
        assert intervals.closed_form(every, mtbf, stall, 300.0) == pytest.approx(best, rel=0.01)


def test_the_supervisor_s_run_has_daly_s_goodput_when_only_ranks_are_killed():
    """Nothing but failures of one kind, noticed at once: then the whole simulation has a closed form."""
    nodes, hours = 64, 400.0
    faults = Faults(hours, {LOST: 0.0, KILLED: 1.0, HANG: 0.0})
    costs = replace(COSTS, detect={KILLED: 0.0}, durable=0.0, relaunch=346.0)
    one = job(nodes, 0, 8, 8192, elastic=1.0)
    found = Simulation(one, costs, faults, 2000.0, seed=3).go()
    expected = intervals.closed_form(costs.every, hours * HOUR / nodes, costs.stall, costs.relaunch)
    assert found.failures > 7000 and found.given_up == 0
    assert found.goodput == pytest.approx(expected, abs=0.003)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 1000), st.sampled_from([math.inf, 2 * DAY]))
def test_every_second_is_booked_once(spares, elastic, seed, limit):
    one = job(32, spares, 8, 512, elastic)
    found = Simulation(one, COSTS, FAULTS, 30.0, seed, pool=40, limit=limit).go()
    # what is waited for at the end may last beyond it
    assert 30 * DAY - 1e-3 <= found.seconds <= 30 * DAY + 2 * COSTS.repair
    assert 0.0 < found.goodput < 1.0 and min(found.lost.values()) >= 0.0
    assert found.by_lemon <= sum(found.lost.values())
    if elastic == 1.0:
        assert found.smallest == 32 and found.lost[FEWER] == 0.0
    again = Simulation(one, COSTS, FAULTS, 30.0, seed, pool=40, limit=limit).go()
    assert again == found


def test_spare_nodes_spare_hand_overs_and_half_a_cluster_is_worse_than_the_queue():
    def run(spares, elastic):
        return Simulation(job(64, spares, 8, 512, elastic), COSTS, FAULTS, 60.0, 1, pool=80, limit=7 * DAY).go()

    none, some = run(0, 1.0), run(8, 1.0)
    assert none.spares_used == 0 < some.spares_used and some.handed_over < none.handed_over
    assert none.goodput < some.goodput
    # 512 sequences: of 63 nodes only 32 can share them
    assert run(0, 0.0).smallest <= 32 and run(0, 0.0).goodput < none.goodput
    assert run(0, 0.75).smallest > 32 and run(0, 0.75).goodput > run(0, 0.0).goodput


def test_tables_say_what_was_found():
    shown = simulation.searches(2)
    assert all(row[-1] == "2 of 2" for row in shown.rows)
    text = simulation.how_often(2000).markdown()
    assert "| 16,384 | 3.1 h | 5.5 min |" in text
    (_, size), _ = simulation.script().rows
    assert int(str(size).replace(",", "")) < 5000
