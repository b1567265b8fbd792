"""The look as a whole and what the supervisor makes of it, over nodes that are played; `tests/slurm` has real ones."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from cluster import cordon, health, preflight, slurm, steps
from cluster.cordon import Cordon
from cluster.health import Health
from cluster.policy import Cause
from cluster.preflight import Preflight
from cluster.stragglers import Straggler
from cluster.verdicts import Need
from tests.cluster.test_slurm import job
from tests.cluster.test_verdicts import said

NODES = [f"n{i}" for i in range(8)]


class Cluster:
    """Plays `steps.ask` for nodes that have flaws."""

    def __init__(self, bad=(), links=(), silent=(), lines=None, slow=()):
        self.bad, self.links, self.silent, self.slow = set(bad), [set(link) for link in links], set(silent), set(slow)
        self.lines, self.asked = lines or {}, []

    def __call__(self, job_id, commands, nodes, ended, limit_s, stop):
        question = json.loads(commands[0][-1])
        program = commands[0][commands[0].index("-m") + 1]
        self.asked.append((program, list(nodes), question))
        answers = steps.Answers()
        for node in nodes:
            if node in self.silent:
                continue
            if program == "pretrain.link_probe":
                answers.lines[node] = self.link(node, question)
            elif question["end"]:
                pids = [pid for pid, _ in question["end"][node]]
                answers.lines[node] = [{"host": node, "check": "ended", "ended": pids, "left": []}]
            else:
                answers.lines[node] = self.lines.get(node) or said(node)
        return answers

    def link(self, node, task):
        (group,) = [group for group in task["groups"] if node in group]
        lines = [{"host": node, "stage": "device"}]
        if len(group) > 1 and (self.bad & set(group) or any(link <= set(group) for link in self.links)):
            return [*lines, {"host": node, "stage": "failed", "at": "join", "error": "timeout"}]
        if len(group) > 1:
            lines.append({"host": node, "stage": "reduced", "right": True, "mb_s": 100.0, "seconds": 0.04})
        rate = 0.3e9 if node in self.slow else 1e9
        return [*lines, {"host": node, "stage": "gemm", "rates": [rate]}, {"host": node, "stage": "end"}]


def settings(tmp_path, **changes):
    told = {"on": True, "limit_s": 60.0, "need": vars(Need()), "data": [], "cordon": str(tmp_path / "cordon.jsonl"),
            "cordon_hours": 24.0, "cordon_stragglers": False}  # fmt: skip
    return {**told, **changes}


def launched(tmp_path, **changes):
    return job(run=str(tmp_path), folder=str(tmp_path / "launch" / "000001"), gpus_per_node=0,
               preflight=settings(tmp_path, **changes))  # fmt: skip


def look(tmp_path, cluster, nodes=NODES, **changes):
    return Preflight(launched(tmp_path, **changes), "17", 3, ask=cluster).look(nodes)


def states(report):
    return {v.node: v.state for v in report.verdicts if v.state != "good"}


def test_nodes_without_a_flaw_cost_two_steps(tmp_path):
    report = look(tmp_path, cluster := Cluster())
    assert states(report) == {} and [program for program, *_ in cluster.asked] == [
        "cluster.node_probe", "pretrain.link_probe"
    ]  # fmt: skip
    assert report.verdicts[0].figures["mb_s"] == 100.0 and report.verdicts[0].figures["gflops"] == 1


def test_a_silent_node_is_asked_again_by_itself_and_then_left_out(tmp_path):
    report = look(tmp_path, cluster := Cluster(silent=["n2"]))
    assert states(report) == {"n2": "bad"} and cluster.asked[1][1] == ["n2"]
    assert "n2" not in cluster.asked[-1][1], "nobody sums with it"


def test_bad_nodes_and_links_are_told_apart(tmp_path):
    report = look(tmp_path, Cluster(bad=["n1"], links=[("n4", "n6")]))
    assert states(report) == {"n1": "bad", "n6": "bad"} and report.links == [("n4", "n6")]
    words = {v.node: v.words for v in report.verdicts}
    assert "with nodes that work with others (timeout)" in words["n1"] and "sums fail with n4" in words["n6"]


def test_a_fault_of_all_leaves_nobody_out(tmp_path):
    report = look(tmp_path, Cluster(bad=NODES))
    assert states(report) == {} and "hardly a defect of the nodes (timeout)" in report.problem
    report = look(tmp_path, Cluster(silent=NODES))
    assert states(report) == {} and "No node answers" in report.problem


def test_who_is_slow_twice_is_used_last(tmp_path):
    report = look(tmp_path, cluster := Cluster(slow=["n5"]))
    assert states(report) == {"n5": "poor"} and "at 30% of the others' rate" in report.verdicts[5].words
    assert all(len(group) == 1 for group in cluster.asked[-1][2]["groups"]), "again, each alone"


def test_ranks_of_this_run_are_ended_and_others_named(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "state_of", lambda job: "RUNNING" if job == "5" else "")
    mine, alien = f"{tmp_path}/launch/000001/config.yaml", "/runs/other/config.yaml"

    def stray(pid, job, config):
        return {"host": "n0", "check": "rank", "time": 1.0, "arrived": 1.0, "pid": pid, "began": 9, "job": job,
                "config": config}  # fmt: skip

    strays = [stray(11, "3", mine), stray(12, "3", alien), stray(13, "5", mine), stray(14, "17", mine)]
    cluster = Cluster(lines={"n0": [*said("n0"), *strays]})
    report = look(tmp_path, cluster)
    (ended,) = [question["end"] for _, _, question in cluster.asked if question.get("end")]
    assert ended == {"n0": [[11, 9], [14, 9]]}, "of an ended job, and of this one's earlier start; not of a live job"
    assert states(report) == {"n0": "poor"} and report.verdicts[0].words.startswith("process 12 is a rank of job 3")


def test_a_supervisor_that_is_asked_to_stop_judges_nobody(tmp_path):
    report = Preflight(launched(tmp_path), "17", 1, lambda: True, Cluster(silent=["n1"])).look(NODES)
    assert states(report) == {} and not report.problem


def test_reports_of_the_same_start_stay_beside_each_other(tmp_path):
    report = look(tmp_path, Cluster(silent=["n2"]))
    first, second = report.save(tmp_path), report.save(tmp_path)
    assert (first.name, second.name) == ("000003.json", "000003-2.json")
    told = json.loads(first.read_text())
    assert told["verdicts"][2]["state"] == "bad" and "pre-flight of start 3" in report.text
    assert report.save(tmp_path / "a file" / "b") is None if (tmp_path / "a file").write_text("x") else False


def test_ports_that_are_taken_are_left(tmp_path):
    class Busy(Cluster):
        def link(self, node, task):
            if len(self.asked) < 4:
                error = "DistNetworkError: EADDRINUSE"
                return [{"host": node, "stage": "device"}, {"host": node, "stage": "failed", "error": error}]
            return super().link(node, task)

    report = look(tmp_path, cluster := Busy())
    ports = [question["port"] for program, _, question in cluster.asked if program == "pretrain.link_probe"]
    assert states(report) == {} and len(set(ports)) == 3


# --- srun itself, played by a shell ------------------------------------------------------------------------


def script(text):
    return ["/bin/sh", "-c", text]


def has_ended(lines):
    return any(line.get("check") == "end" for line in lines)


def says(host, *checks):
    lines = [json.dumps({"host": host, "check": check}) for check in checks]
    return "; ".join(f"echo '{line}'" for line in lines)


def test_who_answers_is_heard_and_who_does_not_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(slurm, "steps_of", lambda job: [])
    began = time.monotonic()
    text = f"{says('a', 'hello', 'end')}; echo noise; echo '[1]'; echo 'no node c' >&2; {says('b', 'hello')}; sleep 60"
    answers = steps.ask("7", [script(text)], ["a", "b"], has_ended, 30.0, grace_s=0.3)
    assert time.monotonic() - began < 10 and answers.complaints == ["no node c"]
    assert has_ended(answers.lines["a"]) and not has_ended(answers.lines["b"]) and answers.lines.keys() == {"a", "b"}


def test_the_limit_holds_where_nobody_answers_and_a_stop_is_heard(monkeypatch):
    monkeypatch.setattr(slurm, "steps_of", lambda job: [])
    began = time.monotonic()
    assert steps.ask("7", [script("sleep 60")], ["a"], has_ended, 0.3).lines == {}
    assert steps.ask("7", [script("sleep 60")], ["a"], has_ended, 60.0, stop=lambda: True).lines == {}
    assert time.monotonic() - began < 10


def test_several_steps_are_heard_at_once():
    nodes = ["a", "b", "c"]
    answers = steps.ask("7", [script(says(node, "hello", "end")) for node in nodes], nodes, has_ended, 20.0)
    assert sorted(answers.lines) == nodes


def test_a_task_on_each_node_beside_all_else():
    told = steps.arguments(["n1", "n2"], 4, [sys.executable, "-m", "x"])
    assert {"--nodes=2", "--ntasks=2", "--overlap", "--mem=0", "--nodelist=n1,n2", "--gpus-per-node=4"} < set(told)


# --- the supervisor's side ---------------------------------------------------------------------------------


@pytest.fixture
def played(tmp_path, monkeypatch):
    """(Health of a job, the cluster that it looks at, the events that it records)."""
    cluster, recorded = Cluster(), []
    monkeypatch.setattr(steps, "ask", cluster)
    monkeypatch.setattr(
        health, "Preflight", lambda job, job_id, start, stop: Preflight(job, job_id, start, stop, cluster)
    )
    made = Health(launched(tmp_path), "17", lambda event, **values: recorded.append((event, values)), lambda: False)
    return made, cluster, recorded


def test_the_first_start_and_those_after_a_nodes_fault_look(played):
    found, cluster, _ = played
    assert found.best_first(NODES, []) == NODES
    count = len(cluster.asked)
    found.heard(Cause("failed", "a traceback"))
    assert found.best_first(NODES[:4], []) == NODES[:4] and len(cluster.asked) == count, "that is no node's fault"
    for kind in ("silent", "hang", "killed", "peer lost"):
        found.heard(Cause(kind, "words"))
        found.best_first(NODES, [])
        assert len(cluster.asked) > count
        count = len(cluster.asked)
    found.best_first([*NODES, "n8"], [])
    assert len(cluster.asked) > count, "a node that has not been seen before"


def test_the_best_come_first_and_the_bad_not_at_all(played, tmp_path):
    found, cluster, recorded = played
    cluster.silent, cluster.slow = {"n0"}, {"n1"}
    Cordon(tmp_path / "cordon.jsonl").add("n2", "hot", 24)
    assert found.best_first(NODES, ["n3"]) == ["n4", "n5", "n6", "n7", "n1", "n2", "n3"]
    ((event, values),) = recorded
    assert event == "preflight" and values["left_out"].keys() == {"n0"} and values["poor"].keys() == {"n1"}
    assert "7 of 8" not in values["words"] and "6 of 8 nodes are well; n0 is left out" in values["words"]
    assert Path(values["file"]).is_file()
    listed = Cordon(tmp_path / "cordon.jsonl").active()
    assert list(listed) == ["n2", "n0"] and listed["n0"].job == "17", "what is poor is not cordoned"


def test_a_node_that_is_well_again_is_used_again(played):
    found, cluster, _ = played
    cluster.silent = {"n0"}
    assert "n0" not in found.best_first(NODES, [])
    cluster.silent = set()
    found.heard(Cause("killed", "words"))
    assert found.best_first(NODES, [])[-1] == "n0", "last, because it is cordoned for a day"


def test_a_successor_does_without_blamed_bad_and_cordoned_nodes(played, tmp_path, monkeypatch):
    found, cluster, _ = played
    cluster.silent = {"n0"}
    found.best_first(NODES, [])
    Cordon(tmp_path / "cordon.jsonl").add("n5", "hot", 24)
    monkeypatch.setattr(slurm, "command", lambda arguments: "\n".join(NODES))
    assert found.excluded(["n3"]) == ["n3", "n0", "n5"]


def test_what_goes_wrong_with_looking_does_not_end_the_run(tmp_path, monkeypatch):
    recorded = []

    def broken(*_):
        raise OSError("no srun")

    monkeypatch.setattr(health, "Preflight", broken)
    found = Health(launched(tmp_path), "17", lambda event, **values: recorded.append(event), lambda: False)
    assert found.best_first(NODES, []) == NODES and recorded == ["preflight"]
    off = Health(launched(tmp_path, on=False), "17", lambda event, **values: recorded.append(event), lambda: False)
    assert off.best_first(NODES, ["n0"])[-1] == "n0" and recorded == ["preflight"]
    old = Health(job(run=str(tmp_path)), "17", lambda event, **values: None, lambda: False)
    assert old.best_first(NODES, []) == NODES, "launched before there was a pre-flight"


def test_stragglers_are_cordoned_only_where_that_is_asked_for(tmp_path):
    slow = Straggler(3, "n3", 0.3, 0.1, alone=False)
    for asked in (False, True):
        made = Health(launched(tmp_path, cordon_stragglers=asked), "17", lambda event, **values: None, lambda: False)
        made.straggles(slow)
        assert list(cordon.of_job(made.job).active()) == (["n3"] if asked else [])


def test_by_hand_it_wants_a_launch_and_an_allocation(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(sys, "argv", ["preflight"])
    with pytest.raises(SystemExit) as end:
        preflight.main()
    assert end.value.code == 2 and "inside a Slurm job" in capsys.readouterr().err
