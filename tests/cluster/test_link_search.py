"""The search over clusters that are simulated: whoever is at fault is found, in few rounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.link_search import search


class Fabric:
    """A group works when it holds no bad node and not both ends of a bad link."""

    def __init__(self, count, nodes=(), links=()):
        self.names = [f"n{i}" for i in range(count)]
        self.nodes = {f"n{i}" for i in nodes}
        self.links = [{f"n{a}", f"n{b}"} for a, b in links]
        self.rounds = 0

    def works(self, group):
        return not self.nodes & set(group) and not any(link <= set(group) for link in self.links)

    def test(self, groups):
        self.rounds += 1
        assert all(len(group) > 1 for group in groups), "one node alone tells nothing"
        members = [node for group in groups for node in group]
        assert len(members) == len(set(members)) and set(members) <= set(self.names), "groups of a round are disjoint"
        return [self.works(group) for group in groups]

    def search(self):
        found = search(self.names, self.test)
        assert found.rounds == self.rounds
        rest = [name for name in self.names if name not in found.left_out]
        if not found.unclear:
            assert len(rest) < 2 or self.works(rest), "what is left works"
        return found


@given(st.integers(3, 512), st.data())
def test_one_bad_node_is_found_in_five_rounds(count, data):
    bad = data.draw(st.integers(0, count - 1))
    found = (fabric := Fabric(count, nodes=[bad])).search()
    assert found.nodes == found.left_out == [f"n{bad}"] and not found.links and not found.unclear
    assert fabric.rounds <= (5 if count > 5 else 7)  # among so few there are fewer to try it with


@given(st.integers(8, 512), st.data())
def test_bad_nodes_up_to_a_quarter_are_found_in_six_rounds(count, data):
    bad = data.draw(st.sets(st.integers(0, count - 1), min_size=2, max_size=count // 4))
    found = (fabric := Fabric(count, nodes=bad)).search()
    assert set(found.nodes) == fabric.nodes and not found.links and not found.unclear
    assert fabric.rounds <= 6


@given(st.integers(3, 512), st.data())
def test_one_bad_link_is_found_in_twice_the_logarithm(count, data):
    link = data.draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=2, unique=True))
    found = (fabric := Fabric(count, links=[link])).search()
    assert [set(pair) for pair in found.links] == fabric.links and not found.nodes and not found.unclear
    assert len(found.left_out) == 1, "one end is enough"
    assert fabric.rounds <= 2 * math.ceil(math.log2(count)) + 6


@given(st.integers(4, 64), st.data())
def test_nodes_and_links_together(count, data):
    nodes = data.draw(st.sets(st.integers(0, count - 1), max_size=max(1, count // 8)))
    ends = st.lists(st.sampled_from(sorted(set(range(count)) - nodes)), min_size=2, max_size=2, unique=True)
    links = data.draw(st.lists(ends, max_size=2))
    found = Fabric(count, nodes, links).search()
    assert not found.unclear
    named = {*found.nodes, *(node for pair in found.links for node in pair)}
    assert {f"n{node}" for node in nodes} <= named
    innocent = {f"n{i}" for i in range(count)} - {f"n{i}" for i in nodes} - {f"n{i}" for link in links for i in link}
    assert not innocent & set(found.left_out), "nobody without a fault is left out"


@given(st.integers(2, 32), st.data())
def test_it_ends_whatever_is_broken(count, data):
    bad = data.draw(st.sets(st.integers(0, count - 1)))
    found = Fabric(count, nodes=bad).search()
    assert found.rounds <= 100 and (len(bad) > 0) == bool(found.left_out or found.unclear)


def test_all_well_is_one_round_and_none_where_that_is_known_to_fail():
    assert Fabric(512).search().rounds == 1
    fabric = Fabric(8, nodes=[3])
    assert search(fabric.names, fabric.test, whole_failed=True).nodes == ["n3"] and fabric.rounds <= 4


@pytest.mark.parametrize("count", [3, 8, 9])
def test_a_fault_of_all_is_no_nodes(count):
    found = Fabric(count, nodes=range(count)).search()
    assert "hardly a defect of the nodes" in found.unclear and not found.left_out and not found.links


def test_of_two_nodes_nobody_can_tell_which():
    found = Fabric(2, nodes=[0]).search()
    assert found.links == [("n0", "n1")] and found.left_out == ["n1"] and not found.nodes


@given(st.integers(3, 40), st.lists(st.booleans(), max_size=60))
def test_answers_by_chance_end_in_words_and_not_in_a_loop(count, answers):
    told = iter(answers)
    found = search([f"n{i}" for i in range(count)], lambda groups: [next(told, False) for _ in groups], most_rounds=30)
    assert found.rounds <= 30


def test_a_failure_that_does_not_come_back_costs_no_node():
    found = search([f"n{i}" for i in range(8)], lambda groups: [len(group) < 8 for group in groups])
    assert found.unclear and not found.left_out


@pytest.mark.parametrize("count", [2, 3])
def test_nobody_is_asked_alone(count):
    Fabric(count, nodes=[0]).search()
