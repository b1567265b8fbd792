"""Who follows a job, with a controller of the test's own; `tests/slurm` has a real one."""

from __future__ import annotations

import json

import pytest

from cluster import slurm
from cluster.errors import ClusterError
from cluster.run_files import EVENTS, events
from cluster.successor import Successor
from tests.cluster.test_slurm import job

SILENT = ClusterError("sbatch refuses: Unable to contact slurm controller (connect failure)")


class Controller:
    """Answers Slurm's commands; `answers` are taken in turn for sbatch, and a job is known by its comment."""

    def __init__(self, monkeypatch, *answers):
        self.answers, self.asked, self.queue, self.states = list(answers), [], [], {}
        monkeypatch.setattr(slurm, "command", self.command)
        monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)

    def command(self, arguments):
        self.asked.append(list(arguments))
        if arguments[0] == "sbatch":
            answer = self.answers.pop(0)
            comment = next(a for a in arguments if a.startswith("--comment=")).removeprefix("--comment=")
            if answer == "lost":  # the job is in the queue, and the answer never came
                self.queue.append(f"77|{comment}")
                raise SILENT
            if isinstance(answer, ClusterError):
                raise answer
            return f"{answer}\n"
        if arguments[0] == "squeue":
            return "\n".join(self.queue)
        if arguments[:2] == ["scontrol", "--oneliner"]:
            return self.states.get(arguments[-1], "JobState=COMPLETED PreemptTime=None")
        return ""


def successor(folder, job_id="5", **changes):
    known = job(run=str(folder), folder=str(folder / "launch" / "000001"), **changes)

    def record(event, **values):
        with (folder / EVENTS).open("a") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")

    return Successor(known, job_id, record)


def named(folder, event):
    return [e for e in events(folder) if e["event"] == event]


def test_a_job_that_waits_is_there_once_and_is_taken_back(tmp_path, monkeypatch):
    controller = Controller(monkeypatch, "6")
    follows = successor(tmp_path)
    assert follows.why_rest() == "" and follows.stand() and follows.stand()
    follows.avoid(["n3"])
    follows.drop()
    (asked, update, cancel) = controller.asked
    assert "--dependency=afterany:5" in asked
    assert update[-2:] == ["jobid=6", "ExcNodeList=n3"] and cancel == ["scancel", "6"]
    assert [e["event"] for e in events(tmp_path)] == ["job", "successor", "exclude", "no successor"]


def test_an_answer_that_was_lost_makes_no_second_job(tmp_path, monkeypatch):
    controller = Controller(monkeypatch, "lost")
    follows = successor(tmp_path)
    assert follows.stand(patient=True) and follows.number == "77"
    assert sum(asked[0] == "sbatch" for asked in controller.asked) == 1


def test_a_silent_controller_is_met_again_at_the_next_start_and_costs_it_no_time(tmp_path, monkeypatch):
    controller = Controller(monkeypatch, SILENT, "6")
    follows = successor(tmp_path)
    assert not follows.stand() and len(controller.asked) == 1
    assert follows.stand() and follows.number == "6"


def test_nodes_that_cannot_be_left_out_are_not(tmp_path, monkeypatch):
    Controller(monkeypatch, ClusterError("sbatch refuses: Requested node configuration is not available"), "6")
    follows = successor(tmp_path)
    assert follows.stand(["n1"]) and named(tmp_path, "successor")[0]["exclude"] == []


def test_the_number_of_successors_is_of_one_launch(tmp_path, monkeypatch):
    Controller(monkeypatch, "7", "8")
    earlier = {"event": "successor", "job": "2", "after": "1", "folder": "another launch's"}
    (tmp_path / EVENTS).write_text(3 * (json.dumps(earlier) + "\n"))
    assert successor(tmp_path, "6", successors=1).stand()
    assert not successor(tmp_path, "7", successors=1).stand()


FOLLOWS = {"event": "successor", "job": "5", "after": "4"}


@pytest.mark.parametrize(
    ("before", "state", "words"),
    [
        ([FOLLOWS], "JobState=NODE_FAIL PreemptTime=None", ""),
        ([FOLLOWS], "JobState=TIMEOUT PreemptTime=None", ""),
        ([FOLLOWS], "JobState=CANCELLED PreemptTime=None", "Job 4 was cancelled"),
        ([FOLLOWS], "JobState=CANCELLED PreemptTime=2026-01-01T00:00:00", ""),
        ([FOLLOWS, {"event": "end", "decision": "give up"}], "JobState=FAILED PreemptTime=None", "gave the run up"),
        ([{"event": "end", "decision": "give up"}], "JobState=FAILED PreemptTime=None", ""),  # a person tries again
    ],
)  # fmt: skip
def test_a_job_rests_where_the_one_before_it_meant_the_run_to_end(tmp_path, monkeypatch, before, state, words):
    Controller(monkeypatch).states["4"] = state
    (tmp_path / EVENTS).write_text("".join(json.dumps(event) + "\n" for event in before))
    why = successor(tmp_path).why_rest()
    assert words in why and bool(why) == bool(words)


def test_jobs_without_a_new_checkpoint_come_to_an_end(tmp_path, monkeypatch):
    Controller(monkeypatch)
    folder = str(tmp_path / "launch" / "000001")
    begun = {"event": "job", "folder": folder, "checkpoint": -1}
    (tmp_path / EVENTS).write_text(json.dumps(FOLLOWS) + "\n" + 3 * (json.dumps(begun) + "\n"))
    assert successor(tmp_path, relaunches=3).why_rest() == ""  # and is one more that has begun
    assert "no new checkpoint" in successor(tmp_path, relaunches=3).why_rest()
    (tmp_path / "checkpoints" / "step-00000008").mkdir(parents=True)
    assert successor(tmp_path, relaunches=3).why_rest() == ""


def test_a_stop_file_keeps_any_job_from_training(tmp_path, monkeypatch):
    Controller(monkeypatch)
    (tmp_path / "STOP").touch()
    assert "STOP asks this run not to train" in successor(tmp_path).why_rest()
