"""Which nodes of an allocation a start uses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.job import Job, largest_world, place

JOB = Job(
    run="/run", folder="/run/launch/1", python="python", nodes=4, spare_nodes=2, ranks_per_node=2, gpus_per_node=0,
    cpus_per_rank=None, batches=[24], elastic=True, directives={}, modules=[], env={}, interface=None, lead_s=90,
    silent_s={"": 60.0}, relaunches=5, successors=1,
)  # fmt: skip


@given(st.integers(1, 12), st.permutations(range(12)), st.integers(0, 12), st.booleans())
def test_the_best_nodes_are_used_in_the_allocations_order_or_none(wanted, order, usable, elastic):
    held = [f"n{i}" for i in range(12)]
    good = [held[i] for i in order[:usable]]
    chosen = place(replace(JOB, nodes=wanted, elastic=elastic), held, good)
    assert chosen == sorted(chosen, key=held.index) and set(chosen) == set(good[: len(chosen)])
    if usable >= wanted:
        assert len(chosen) == wanted
    else:
        assert len(chosen) == (largest_world(usable, JOB.ranks_per_node, JOB.batches) if elastic else 0)


def test_a_start_of_a_job_without_enough_nodes_has_no_place():
    assert place(replace(JOB, elastic=False), ["n1", "n2"], ["n1", "n2"]) == []
    assert place(replace(JOB, batches=[7]), ["n1", "n2"], ["n1", "n2"]) == []


@pytest.mark.parametrize(("left", "used"), [(23, 12), (12, 12), (11, 0), (3, 0)])
def test_a_run_that_would_become_much_smaller_waits_instead(left, used):
    nodes = [f"n{i}" for i in range(left)]
    job = replace(JOB, nodes=24, ranks_per_node=1, elastic=True, elastic_least=0.5)
    assert len(place(job, nodes, nodes)) == used
