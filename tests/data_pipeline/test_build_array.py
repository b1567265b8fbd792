"""Tasks that share a build through files alone make the dataset of one process, whoever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_pipeline.build import build, prepare
from data_pipeline.build_array import DONE, GIVEN_UP, STOPPED, Order, work
from data_pipeline.claims import Patience, read_object
from data_pipeline.config import BuildConfig

from .conftest import make_texts, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
QUICK = Patience(silent_s=1.2, pause_s=0.1, poll_s=0.05)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Several sources, with copies, near copies, and a benchmark that shares text with some."""
    folder = tmp_path_factory.mktemp("sources")
    texts = make_texts(240, seed=5)
    for number in range(3):
        write_jsonl(folder / f"{number}.jsonl", texts[number::3])
    write_jsonl(folder / "copies.jsonl", texts[2::3])
    write_jsonl(folder / "near.jsonl", [text + f" One more word {n}." for n, text in enumerate(texts[:40])])
    (folder / "held").mkdir()
    write_jsonl(folder / "held" / "benchmark.jsonl", [texts[3], texts[99]])
    (folder / "prose.txt").write_text("\n\n".join(make_texts(30, seed=6)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def make(sources, settings):
    def config(output, **changes):
        options = settings | {
            "sources": (str(sources / "*.jsonl"), str(sources / "prose.txt")),
            "part_bytes": 30_000,
            "clean": {
                "pii": ["email", "ip"],
                "near_dedup": {},
                "decontaminate": {"files": [str(sources / "held" / "benchmark.jsonl")]},
            },
        }
        return BuildConfig(output=output, **options | changes)

    return config


def every_file(directory):
    """Name and bytes of all files: a dataset holds neither a log nor a time of its building."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory, make):
    output = tmp_path_factory.mktemp("one") / "d"
    report = build(make(output), progress=False).index.report
    assert report["rejected"]["near_duplicate"] >= 20 and report["rejected"]["contaminated"] >= 1
    assert report["duplicates"] >= 80
    return every_file(output)


def launch(tmp_path, config, workers=1, patience=QUICK):
    """What `pha data build --launch` does before it submits; gives the launch's folder."""
    fingerprint = prepare(config, progress=False)
    folder = tmp_path / "launch"
    folder.mkdir(exist_ok=True)
    Order(fingerprint, str(config.output), workers, patience).save(folder)
    return folder


def start(folder, name):
    command = [sys.executable, "-m", "data_pipeline.build_task", str(folder), name]
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def wait_for(condition, words, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, words
        time.sleep(0.01)


def logs(folder):
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.log")))


@pytest.mark.parametrize(("tasks", "workers"), [(1, 1), (3, 1), (2, 2)])
def test_any_number_of_tasks_gives_the_bytes_of_one_process(tmp_path, make, expected, tasks, workers):
    folder = launch(tmp_path, make(tmp_path / "d"), workers)
    processes = [start(folder, f"t{n}") for n in range(tasks)]
    assert [p.wait(120) for p in processes] == [DONE] * tasks, logs(folder)
    assert every_file(tmp_path / "d") == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "launch"], "the last to leave tidies up"
    assert read_object(folder / "end.json")["outcome"] == "built"
    done = [read_object(folder / "tasks" / f"t{n}.json")["done"] for n in range(tasks)]
    claims = [json.loads(p.read_text()) for p in (folder / "claims").iterdir()]
    assert sum(done) == len(claims) and all(claim["failures"] == 0 for claim in claims), "no unit was done twice"


def children(pid):
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def claimed(folder, stage):
    return [path for path in (folder / "claims").glob(f"{stage}*")]


def test_a_task_that_is_killed_at_every_stage_goes_on_where_it_was(tmp_path, make, expected):
    folder = launch(tmp_path, make(tmp_path / "d"), patience=Patience(silent_s=600.0, poll_s=0.05))
    stages = ["spool-00002", "sketch", "near", "search", "tokenizer", "encode-00000", "shard-train", "publish"]
    killed = 0
    for stage in stages:
        process = start(folder, "t")
        wait_for(lambda p=process, s=stage: claimed(folder, s) or p.poll() is not None, stage)
        killed += process.poll() is None
        process.kill()
        process.wait()
    assert killed >= 4
    last = start(folder, "t")
    assert last.wait(120) == DONE, logs(folder)
    assert every_file(tmp_path / "d") == expected
    taken_over = [p.name for p in (folder / "claims").glob("*.2")]
    assert taken_over, "without waiting for the silence of its former life"


def test_the_others_take_over_from_a_killed_task_and_from_one_that_hangs(tmp_path, make, expected):
    """One is killed in the middle of a unit, one stands still in the middle of another and comes back at the end."""
    folder = launch(tmp_path, make(tmp_path / "d"))
    dead, frozen = start(folder, "dead"), start(folder, "frozen")
    for process in (dead, frozen):
        wait_for(lambda p=process: children(p.pid), "a worker")
        worker = children(process.pid)[0]
        os.kill(worker, signal.SIGSTOP)  # before it can have done anything: it has just been started
        os.kill(process.pid, signal.SIGKILL if process is dead else signal.SIGSTOP)
        if process is dead:
            os.kill(worker, signal.SIGKILL)
    units = [json.loads(path.read_text())["task"] for path in claimed(folder, "spool-")]
    assert {"dead", "frozen"} <= set(units), "each held a unit"
    assert start(folder, "other").wait(120) == DONE, logs(folder)
    again = {json.loads(p.read_text())["task"] for p in (folder / "claims").glob("*.2")}
    assert again == {"other"}
    for pid in (worker, frozen.pid):
        os.kill(pid, signal.SIGCONT)
    assert frozen.wait(60) == DONE, "it finds the dataset built"
    dead.wait()
    assert every_file(tmp_path / "d") == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "launch"]


def test_a_killed_worker_is_replaced_and_its_unit_done_again(tmp_path, make, expected):
    folder = launch(tmp_path, make(tmp_path / "d"), workers=2)
    process = start(folder, "t")
    wait_for(lambda: children(process.pid), "a worker")
    os.kill(children(process.pid)[0], signal.SIGKILL)
    assert process.wait(120) == DONE, logs(folder)
    assert every_file(tmp_path / "d") == expected
    (failed,) = (folder / "claims").glob("*.failed")
    assert "was killed by signal 9" in read_object(failed)["words"]


def test_a_task_that_is_asked_to_stop_frees_its_units_and_a_second_launch_goes_on(tmp_path, make, expected):
    config = make(tmp_path / "d")
    folder = launch(tmp_path, config, workers=2)
    process = start(folder, "t")
    wait_for(lambda: claimed(folder, "spool-00004"), "some units")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == STOPPED, logs(folder)
    assert not [p for p in (folder / "claims").glob("*.failed")]
    finished = {p.name for p in (tmp_path / ".d.building" / "spool").iterdir() if ".tmp-" not in p.name}
    assert len(finished) >= 2
    assert read_object(folder / "tasks" / "t.json")["state"] == "stopped" and not (folder / "end.json").exists()
    (tmp_path / "again").mkdir()
    second = launch(tmp_path / "again", config)
    assert start(second, "t").wait(120) == DONE, logs(second)
    read_again = {p.name.removeprefix("spool-").removesuffix(".1") for p in claimed(second, "spool-")}
    assert read_again and not read_again & finished, "only what is missing"
    assert every_file(tmp_path / "d") == expected
    assert prepare(config, progress=False) is None, "a third launch has nothing to do"


def test_bad_text_ends_the_build_for_all_tasks_with_one_sentence(tmp_path, make, sources):
    bad = write_jsonl(tmp_path / "bad.jsonl", make_texts(20))
    with bad.open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    folder = launch(tmp_path, make(tmp_path / "d", sources=(str(bad), str(sources / "0.jsonl"))))
    processes = [start(folder, f"t{n}") for n in range(2)]
    assert [p.wait(60) for p in processes] == [GIVEN_UP, GIVEN_UP], logs(folder)
    ended = read_object(folder / "end.json")
    assert ended["outcome"] == "failed" and "bad.jsonl:21 is not valid JSON" in ended["words"]
    assert "Traceback" not in logs(folder) and not (tmp_path / "d").exists()
    words = [read_object(path)["words"] for path in (folder / "tasks").iterdir()]
    assert all("bad.jsonl:21" in said for said in words)


def test_a_unit_that_fails_whoever_does_it_ends_the_build_after_some_tries(tmp_path, make):
    folder = launch(tmp_path, make(tmp_path / "d"))
    (tmp_path / ".d.building" / "encoded").symlink_to(tmp_path / "nowhere")
    assert work(folder, "t", threading.Event(), progress=False) == GIVEN_UP
    ended = read_object(folder / "end.json")
    assert "the unit encode-00000 has failed 4 times" in ended["words"] and "encoded: File exists" in ended["words"]


def test_a_task_of_another_folder_is_told_so(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "data_pipeline.build_task", str(tmp_path), "t"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == GIVEN_UP and "is no launch of a build" in done.stderr and "Traceback" not in done.stderr
