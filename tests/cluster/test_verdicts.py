"""From what nodes say to verdicts, with made-up nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import verdicts
from cluster.verdicts import Need, judge, judge_computing, rates, slow_nodes, table, works

GB = 1e9


def said(host, skew=0.0, late=0.01, without=(), **changes):
    """The lines of a node without a flaw, but for these changes of a check's values."""
    checks = {
        "hello": {},
        "memory": {"free": 8 * GB},
        "interface": {"address": "10.0.0.1"},
        "versions": {"python": "3.11.7", "torch": "2.13.0", "kernel": "6.1"},
        "tmp": {"free": 5 * GB, "inodes": 1000, "write_s": 0.001},
        "shm": {"free": 5 * GB, "inodes": 1000, "write_s": 0.001},
        "run": {"free": 50 * GB, "inodes": None, "write_s": 0.01},
        "end": {},
    }
    lines = []
    for number, (check, values) in enumerate(checks.items()):
        if check not in without:
            now = 1000.0 + number
            lines.append(
                {"host": host, "check": check, "time": now + skew, "arrived": now + late, **values}
                | changes.get(check, {})
            )
    return lines


def judged(*nodes, **options):
    """Verdicts on nodes n0, n1, ..., each given as its lines."""
    lines = {f"n{i}": node for i, node in enumerate(nodes)}
    return judge(list(lines), lines, Need(), **options)


def others(count=2):
    return [said(f"o{i}") for i in range(count)]


def test_nodes_without_a_flaw_are_good():
    found = judged(*others(3))
    assert [v.state for v in found.values()] == ["good"] * 3 and found["n0"].figures["memory_gb"] == 8.0


@pytest.mark.parametrize(
    ("node", "state", "words"),
    [
        ([], "bad", "did not answer"),
        (said("x", without=("run", "end")), "bad", "the last that it said was of shm"),
        (said("x", memory={"free": 0.2 * GB}), "poor", "0.20 GB of memory are free, and 1 are asked for"),
        (said("x", memory={"error": "KeyError: MemAvailable"}), "poor", "KeyError"),
        (said("x", tmp={"free": 1e6}), "bad", "/tmp is full (1.0 MB are free)"),
        (said("x", tmp={"free": 0.1 * GB}), "poor", "/tmp has 0.10 GB free, and 0.5 are asked for"),
        (said("x", tmp={"inodes": 0}), "bad", "no inodes left"),
        (said("x", tmp={"error": "OSError: [Errno 28] No space left on device"}), "bad", "tmp: OSError"),
        (said("x", shm={"free": 0.0}), "bad", "/dev/shm is full"),
        (said("x", run={"error": "OSError: what was written is not what is read"}), "bad", "is not what is read"),
        (said("x", run={"write_s": 30.0}), "poor", "takes 30.0 s to write and read"),
        (said("x", versions={"torch": "2.12.0"}), "poor", "torch is 2.12.0, and 2.13.0 on most others"),
        (said("x", versions={"kernel": "5.15"}), "good", ""),
        (said("x", skew=7.0), "poor", "its clock is 7.0 s ahead"),
        (said("x", skew=-3.0), "poor", "its clock is 3.0 s late"),
        (said("x", skew=1.5), "good", ""),
        (said("x", interface={"error": "OSError: [Errno 19] No such device"}), "bad", "No such device"),
    ],
)
def test_what_is_wrong_with_a_node_is_named(node, state, words):
    verdict = judged(node, *others())["n0"]
    assert verdict.state == state and words in verdict.words, verdict.words


def test_a_slow_answer_is_no_wrong_clock():
    late = said("x", late=9.0)
    late[3]["arrived"] = late[3]["time"] + 0.02  # one of its lines came at once
    assert judged(late, *others())["n0"].state == "good"


def test_gpus_and_strays():
    defects = [[True, "7 of 8 GPUs are there"], [False, "GPU 1 is at 90 °C while idle"]]
    gpus = {"host": "x", "check": "gpus", "time": 1.0, "arrived": 1.0, "count": 7, "kinds": ["H100"], "driver": "550"}
    gpus |= {"hottest": 40, "defects": defects}
    verdict = judged([*said("x"), gpus], *others())["n0"]
    assert verdict.state == "bad" and "7 of 8" in verdict.words and "90 °C" in verdict.words
    stray = {"host": "x", "check": "rank", "time": 1.0, "arrived": 1.0, "pid": 77, "job": "3", "config": "/runs/a"}
    assert judged([*said("x"), stray], *others())["n0"].state == "poor"
    assert judged([*said("x"), stray], *others(), gone=lambda job: job != "3")["n0"].state == "good", "it still runs"


def test_what_all_nodes_have_is_no_nodes_defect():
    full = {"error": "OSError: No space left on device"}
    assert [v.state for v in judged(said("x", run=full), said("y", run=full)).values()] == ["poor", "poor"]
    assert [v.state for v in judged(said("x", run=full)).values()] == ["poor"], "the folder is everybody's"
    assert [v.state for v in judged(said("x", tmp=full)).values()] == ["bad"], "its own disk is a node's"
    assert [v.state for v in judged(said("x", run=full), [], said("y", run=full)).values()] == ["poor", "bad", "poor"]
    assert [v.state for v in judged(said("x", run=full), *others()).values()] == ["bad", "good", "good"]


def test_without_a_majority_nobody_is_wrong():
    assert {v.state for v in judged(said("x", versions={"torch": "2.12.0"}), said("y")).values()} == {"good"}
    assert {v.state for v in judged(said("x", skew=100.0), said("y")).values()} == {"good"}


def linked(node, *stages):
    return [{"host": node, "stage": stage, **values} for stage, values in stages]


WELL = ("device", {}), ("reduced", {"right": True, "mb_s": 500.0, "seconds": 0.01}), ("end", {})


def test_who_does_not_come_to_compute_is_bad_unless_nobody_does():
    found = judged(*others(3))
    lines = {"n0": linked("n0", *WELL), "n1": linked("n1", ("imported", {})),
             "n2": linked("n2", ("failed", {"error": "CUDA error"}))}  # fmt: skip
    assert judge_computing(found, lines, ["n0", "n1", "n2"]) == ""
    assert [v.state for v in found.values()] == ["good", "bad", "bad"]
    assert "last: imported" in found["n1"].words and "CUDA error" in found["n2"].words
    found = judged(*others(2))
    problem = judge_computing(found, {"n0": linked("n0", ("failed", {"error": "no torch"}))}, ["n0", "n1"])
    assert "no torch" in problem and {v.state for v in found.values()} == {"good"}


def test_a_sum_counts_when_it_is_right_and_fast_enough():
    wrong = ("reduced", {"right": False, "mb_s": 500.0})
    slow = ("reduced", {"right": True, "mb_s": 3.0})
    lines = {"a": linked("a", *WELL), "b": linked("b", *WELL), "c": linked("c", wrong), "d": linked("d", slow)}
    assert works(["a", "b"], lines, Need())
    assert not works(["a", "c"], lines, Need()) and not works(["a", "e"], lines, Need())
    assert not works(["a", "d"], lines, Need()) and works(["a", "d"], lines, replace(Need(), link_mb_s=0))


@given(st.lists(st.floats(0.8, 1.0), min_size=3, max_size=40), st.floats(0.05, 0.5))
def test_the_slow_one_is_named_and_nobody_else(speeds, share):
    lines = {f"n{i}": linked(f"n{i}", ("gemm", {"rates": [speed, 2.0]})) for i, speed in enumerate(speeds)}
    lines["slow"] = linked("slow", ("gemm", {"rates": [2.0, share]}))
    rate = rates(lines, list(lines))
    assert slow_nodes(rate, Need()).keys() == {"slow"}
    assert not slow_nodes(rate, replace(Need(), slow=0)) and not slow_nodes({"a": 1.0, "b": 0.1}, Need())


def test_the_table_has_a_line_a_node_the_bad_ones_last():
    found = judged([], *others())
    lines = table(list(found.values())).splitlines()
    assert lines[0].startswith("n1  good  8 GB free") and lines[-1] == "n0  bad   it did not answer in time"
    assert verdicts.table([]) == ""
