"""From the files that ranks leave to what is done."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.policy import Action, Blame, Budget, Cause, decide, first_cause
from cluster.run_files import exit_notes


def leave(folder, rank, kind, time, words="", step=3):
    folder.mkdir(parents=True, exist_ok=True)
    note = {"rank": rank, "kind": kind, "time": time, "words": words or kind, "step": step, "host": f"n{rank}"}
    (folder / f"rank-{rank}.json").write_text(json.dumps(note))


def test_the_first_failure_by_time_is_the_cause_and_not_who_lost_it(tmp_path):
    folder = tmp_path / "exits" / "000001"
    leave(folder, 0, "peer lost", 1.0)
    leave(folder, 1, "failed", 2.5, "no space")
    leave(folder, 2, "out of memory", 2.0, "8 GiB")
    found = first_cause(exit_notes(tmp_path, 1), 3)
    assert (found.kind, found.rank, found.host, found.words) == ("out of memory", 2, "n2", "8 GiB")


def test_who_left_nothing_is_the_cause_where_the_others_only_lost_it(tmp_path):
    folder = tmp_path / "exits" / "000001"
    leave(folder, 0, "peer lost", 1.0)
    leave(folder, 2, "stopped", 0.5)
    found = first_cause(exit_notes(tmp_path, 1), 3)
    assert (found.kind, found.rank) == ("killed", 1) and "Rank 1 left no reason" in found.words
    assert first_cause([], 2).kind == "killed"


def test_all_that_were_asked_to_stop_have_stopped(tmp_path):
    folder = tmp_path / "exits" / "000001"
    for rank in range(2):
        leave(folder, rank, "stopped", rank, "SIGTERM")
    (folder / "rank-7.json").write_text('{"torn')
    assert first_cause(exit_notes(tmp_path, 1), 2).kind == "stopped"


@pytest.mark.parametrize(
    ("kind", "action"),
    [
        ("done", Action.FINISH),
        ("stopped", Action.HAND_OVER),
        ("bad input", Action.GIVE_UP),
        ("out of memory", Action.GIVE_UP),
        ("overtaken", Action.GIVE_UP),
        ("hang", Action.RELAUNCH),
        ("silent", Action.RELAUNCH),
        ("killed", Action.RELAUNCH),
        ("failed", Action.RELAUNCH),
        ("unheard of", Action.RELAUNCH),
    ],
)
def test_the_table(kind, action):
    assert decide([Cause(kind, "words")], Budget()).action is action


def test_a_run_that_its_file_stops_is_at_rest():
    assert decide([Cause("stopped", "STOP")], Budget(), stopped_by_file=True).action is Action.FINISH
    assert decide([Cause("killed", "gone")], Budget(), stopped_by_file=True).action is Action.FINISH
    assert decide([Cause("bad input", "x")], Budget(), stopped_by_file=True).action is Action.GIVE_UP


def test_the_same_failure_at_the_same_step_twice_is_no_accident():
    first, other = Cause("failed", "a nan", step=7), Cause("failed", "a nan", step=8)
    assert decide([first, other], Budget()).action is Action.RELAUNCH
    assert decide([first, other, first], Budget()).action is Action.GIVE_UP
    killed = Cause("killed", "gone", step=7)
    assert decide([killed, killed], Budget()).action is Action.RELAUNCH, "nodes do die twice"


@given(st.integers(1, 12), st.integers(0, 8))
def test_the_budget_ends_and_pauses_grow(failures, allowed):
    causes = [Cause("killed", f"number {n}") for n in range(failures)]
    decision = decide(causes, Budget(relaunches=allowed))
    assert decision.action is (Action.GIVE_UP if failures > allowed else Action.RELAUNCH)
    budget = Budget()
    pauses = [budget.pause(n) for n in range(1, failures + 1)]
    assert pauses == sorted(pauses) and pauses[0] == 0.0 and pauses[-1] <= budget.longest_pause_s


def test_a_node_is_blamed_for_a_hang_and_for_the_second_kill():
    blame = Blame()
    for kind, host in (("killed", "n1"), ("killed", "n2"), ("hang", "n3"), ("silent", "elsewhere"), ("failed", "n4")):
        blame.hear(Cause(kind, "", host=host), ["n1", "n2", "n3", "n4"])
    assert blame.nodes == ["n3"]
    blame.hear(Cause("killed", "", host="n1"), ["n1"])
    blame.add(["n1", "n5"])
    assert blame.nodes == ["n3", "n1", "n5"]
