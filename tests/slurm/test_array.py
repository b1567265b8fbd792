"""`pha data build --launch` on a real Slurm: tasks and a node die, and the bytes are those of one machine."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from cluster.array import events
from data_pipeline.build import build
from data_pipeline.config import BuildConfig
from tests.conftest import write_corpus
from tests.slurm import bed

PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def folder(shared):
    """A folder that all nodes see, with a corpus in it."""
    for number in range(4):
        write_corpus(shared / f"{number}.jsonl", 20 * number, 20 * number + 30)  # a third of it twice
    return shared


def settings(folder, output):
    return {
        "sources": [str(folder / "*.jsonl")],
        "output": str(output),
        "tokenizer": {"vocab_size": 600},
        "validation_fraction": 0.05,
        "test_fraction": 0.05,
        "part_bytes": 20_000,
        "shard_bytes": 60_000,
        "clean": {"near_dedup": {}, "decontaminate": {}},
    }


@pytest.fixture(scope="module")
def expected(folder):
    """Every file of the dataset, as one process on this machine builds it."""
    build(BuildConfig.model_validate(settings(folder, folder / "one")), progress=False)
    return every_file(folder / "one")


def every_file(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def pha(*arguments):
    return bed.told(sys.executable, "-m", "pretrain.cli", "data", *map(str, arguments))


def launch(folder, name, *arguments, **cluster):
    """Launches the build of `name`, each task on a node of its own; returns the number and the launch."""
    path = folder / f"{name}.yaml"
    # a task is one process at work, and takes a node's four CPUs so that no other one comes there
    section = {"tasks": 4, "time": "20:00", "options": {"cpus-per-task": "4"}, **cluster}
    path.write_text(yaml.safe_dump(settings(folder, folder / name) | {"cluster": section}))
    told = json.loads(pha("build", path, "--launch", "--json", *arguments))
    return told["job"], type(folder)(told["folder"])


def wait(condition, words):
    bed.wait_until(condition, PATIENCE_S, words)


def read(path):
    """A JSON file, or nothing while it is not there."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def beats(launched):
    return [beat for path in sorted((launched / "tasks").glob("*.json")) if (beat := read(path))]


def ended(launched):
    return read(launched / "end.json")


def free_nodes(count=4):
    wait(lambda: len(bed.idle()) >= count, "idle nodes")


def test_killed_tasks_and_a_lost_node_change_no_byte(folder, expected):
    """The process of a task is killed, then a whole task, then the node of a third one; nobody does anything."""
    free_nodes()
    job, launched = launch(folder, "killed", silent_s=3)
    with pytest.raises(RuntimeError, match=f"Job {job} builds"):
        launch(folder, "killed")
    wait(lambda: beats(launched), "a task")
    process = beats(launched)[0]
    bed.enter(process["host"], "pkill", "-9", "-f", f"build_task {launched} ", check=True)
    wait(lambda: len(beats(launched)) == 4, "four tasks")
    assert len({beat["host"] for beat in beats(launched)}) == 4
    task, node, _ = (beat for beat in beats(launched) if beat["task"] != process["task"])
    bed.crash(node["host"])
    bed.told("scancel", "--signal=KILL", "--full", task["task"])
    shown = json.loads(pha("status", folder / "killed", "--json"))
    assert shown["state"] in ("unfinished", "built") and len(shown["tasks"]) == 4
    wait(lambda: ended(launched), "the end of the build")
    assert ended(launched)["outcome"] == "built", ended(launched)
    assert every_file(folder / "killed") == expected
    starts = [event["task"] for event in events(launched) if event["event"] == "start"]
    assert starts.count(process["task"]) == 2, "its supervisor started it again"
    assert starts.count(task["task"]) == starts.count(node["task"]) == 1
    taken_over = list((launched / "claims").glob("*.2"))
    assert taken_over, "units in the middle of which somebody died were done by another one"
    bed.told("scancel", job)  # the lost node's task would come back after Slurm's two minutes, to find all done
    bed.boot(node["host"])
    assert pha("status", folder / "killed").splitlines()[0] == f"{folder / 'killed'}: built"


def test_before_the_time_limit_a_task_hands_over_and_a_cancelled_build_goes_on_with_the_next_launch(folder, expected):
    free_nodes(2)
    job, launched = launch(folder, "handed", tasks=1)
    wait(lambda: (launched / "claims" / "spool-00002.1").exists(), "some finished units")
    bed.told("scancel", "--signal=USR1", "--batch", f"{job}_1")  # as Slurm does before the time limit
    wait(lambda: len(beats(launched)) == 2, "the task of the job that follows")
    (successor,) = [event["job"] for event in events(launched) if event["event"] == "successor"]
    assert beats(launched)[0]["state"] == "stopped" and not list((launched / "claims").glob("*.failed"))
    assert [beat["task"] for beat in beats(launched)] == sorted([f"{job}_1", f"{successor}_1"])
    bed.told("scancel", successor)
    wait(lambda: not states_of(successor), "the end of the cancelled task")
    assert not ended(launched) and "launch the build again to go on" in pha("status", folder / "handed")
    _, second = launch(folder, "handed", "--tasks", "2")
    wait(lambda: ended(second), "the end of the build")
    assert ended(second)["outcome"] == "built" and every_file(folder / "handed") == expected


def states_of(number):
    return bed.enter(bed.LOGIN, "squeue", "-h", "-j", number, "-o", "%T", capture_output=True).stdout.split()


def test_text_that_cannot_be_read_ends_all_tasks_and_is_told_in_one_sentence(folder):
    free_nodes(2)
    (folder / "bad").mkdir()
    (folder / "bad" / "bad.jsonl").write_text('{"text": "fine"}\n{broken\n')
    path = folder / "failing.yaml"
    path.write_text(yaml.safe_dump(settings(folder / "bad", folder / "failing")))
    told = json.loads(pha("build", path, "--launch", "--tasks", 2, "--cluster", "time=10:00", "--json"))
    launched = type(folder)(told["folder"])
    wait(lambda: ended(launched), "the end of the build")
    wait(lambda: not states_of(told["job"]), "the end of the tasks")
    said = pha("status", folder / "failing")
    assert f"{folder / 'failing'}: failed" in said and "bad.jsonl:2 is not valid JSON" in said
    logs = "".join(log.read_text() for log in (launched / "logs").iterdir())
    assert "bad.jsonl:2 is not valid JSON" in logs and "Traceback" not in logs
