"""A dataset is the same to the byte, however many processes build it and however often they are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline import build_plan
from data_pipeline.build import build, build_part
from data_pipeline.build_plan import finished_directory, locked, plan_parts
from data_pipeline.build_pool import Pool, WorkerDied
from data_pipeline.config import BuildConfig
from data_pipeline.errors import DataError

from .conftest import write_jsonl
from .test_build import contents

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from data_pipeline.build import build
from data_pipeline.config import BuildConfig
build(BuildConfig.model_validate_json(sys.argv[1]), progress=False, workers=int(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory, texts):
    """Six files, one of them a copy of another."""
    folder = tmp_path_factory.mktemp("parts")
    for number in range(5):
        write_jsonl(folder / f"{number}.jsonl", texts[number::5])
    write_jsonl(folder / "5.jsonl", texts[2::5])
    return folder


@pytest.fixture(scope="module")
def make(sources, settings):
    """A configuration of the six files: output → BuildConfig with ten parts."""

    def config(output, **changes):
        options = settings | {"part_bytes": 40_000, "sources": (str(sources / "*.jsonl"),)} | changes
        return BuildConfig(output=output, **options)

    return config


@pytest.fixture(scope="module")
def expected(tmp_path_factory, make):
    output = tmp_path_factory.mktemp("one") / "d"
    report = build(make(output), progress=False).index.report
    assert (report["documents_kept"], report["duplicates"]) == (400, 80)
    return contents(output)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_change_no_byte(tmp_path, make, expected, workers):
    build(make(tmp_path / "d"), progress=False, workers=workers)
    assert contents(tmp_path / "d") == expected
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_the_size_of_tasks_changes_no_byte(tmp_path, make, expected):
    build(make(tmp_path / "d", part_bytes=1 << 30), progress=False)
    assert contents(tmp_path / "d") == expected


def _children(pid):
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


@pytest.mark.parametrize("seed", [0, 1])
def test_kills_change_no_byte(tmp_path, make, expected, seed):
    """SIGKILL at seeded moments, in turn of parent and workers, of the parent alone, and of one worker."""
    rng = random.Random(seed)
    output = tmp_path / "d"
    command = [sys.executable, "-c", SCRIPT, make(output).model_dump_json(), "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = 0
    for attempt in range(6):
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
        started = time.monotonic()
        while not (tmp_path / ".d.building" / "plan.json").exists() and process.poll() is None:
            time.sleep(0.01)
            assert time.monotonic() - started < 60
        time.sleep(rng.uniform(0.0, 1.6))
        workers = _children(process.pid)
        targets = [[process.pid, *workers], [process.pid], workers[:1]][attempt % 3]
        killed += process.poll() is None
        for pid in targets:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait(60)
        if output.exists():
            break
    assert killed
    build(make(output), progress=False)
    assert contents(output) == expected
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


class _Stopped(BaseException):
    """Stands for a kill inside one process."""


@pytest.mark.parametrize("after", range(0, 36, 5))
def test_a_build_continues_from_any_task(tmp_path, make, expected, monkeypatch, after):
    done = []

    def stop(self, plan_tasks, advance):
        from data_pipeline.build_pool import run_task

        for task in plan_tasks:
            if len(done) == after:
                raise _Stopped
            done.append(task)
            advance(*run_task(self.plan, task))

    with monkeypatch.context() as patch:
        patch.setattr(Pool, "run", stop)
        try:
            build(make(tmp_path / "d"), progress=False)
        except _Stopped:
            assert not (tmp_path / "d").exists()
    repeated = []
    real = Pool.run
    monkeypatch.setattr(Pool, "run", lambda self, tasks, advance: (repeated.extend(tasks), real(self, tasks, advance)))
    build(make(tmp_path / "d"), progress=False)
    assert contents(tmp_path / "d") == expected
    assert not [task for task in repeated if task in done]


def test_a_job_array_builds_the_same(tmp_path, make, expected):
    config = make(tmp_path / "d")
    with pytest.raises(DataError, match=r"10 of the 10 parts .* are not finished"):
        build(config, progress=False, finish=True)
    first = [build_part(config, part, 3, progress=False) for part in (3, 1, 2)]
    assert first == [False, False, True]  # the last to read finds all parts read, and encodes its share
    second = [build_part(config, part, 3, progress=False) for part in (1, 2)]
    assert second == [True, True]
    with pytest.raises(DataError, match="holds the work of other settings"):
        build_part(make(tmp_path / "d", salt=4), 1, 3, progress=False)
    build(config, progress=False, finish=True)
    assert contents(tmp_path / "d") == expected
    assert build_part(config, 1, 3, progress=False)  # a late task of the array has nothing to do
    with pytest.raises(DataError, match="part 4/3 does not exist"):
        build_part(config, 4, 3, progress=False)


def test_a_share_refuses_the_work_of_another_version(tmp_path, make, expected):
    config = make(tmp_path / "d")
    build_part(config, 1, 3, progress=False)
    plan = tmp_path / ".d.building" / "plan.json"
    tree = json.loads(plan.read_text(encoding="utf-8"))
    tree["parts"] = [[row, "a spec", ["a path"]] for row, _ in tree["parts"]]
    plan.write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(DataError, match="is no work directory of this version"):
        build_part(config, 2, 3, progress=False)
    build(config, progress=False)  # alone, it may begin anew
    assert contents(tmp_path / "d") == expected


def test_changed_settings_start_anew_with_a_sentence(tmp_path, make, expected, monkeypatch, capfd):
    def stop(*_):
        raise _Stopped

    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.build_stages.make_layout", stop)
        with pytest.raises(_Stopped):
            build(make(tmp_path / "d", salt=7), progress=False)
    build(make(tmp_path / "d"), progress=True)
    assert "have changed since the build" in " ".join(capfd.readouterr().err.split())
    assert contents(tmp_path / "d") == expected


def test_two_builds_of_one_output_do_not_mix(tmp_path, make):
    with (
        locked(tmp_path / ".d.building", "alone"),
        pytest.raises(DataError, match="in use by another build"),
    ):
        build(make(tmp_path / "d"), progress=False)


def test_a_failing_worker_ends_the_build_with_its_sentence(tmp_path, make, sources, texts):
    bad = write_jsonl(tmp_path / "bad.jsonl", texts[:20])
    with bad.open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    config = make(tmp_path / "d", sources=(str(sources / "*.jsonl"), str(bad)))
    with pytest.raises(DataError, match=r"bad.jsonl:21 is not valid JSON"):
        build(config, progress=False, workers=2)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]


def test_a_worker_that_dies_is_named_and_the_work_kept(tmp_path, make, expected, monkeypatch):
    give = Pool._give
    given = []

    def kill(self, process, task, doing, feed):
        given.append(task)
        if len(given) == 5:
            process.kill()
            process.wait()
        give(self, process, task, doing, feed)

    with monkeypatch.context() as patch:
        patch.setattr(Pool, "_give", kill)
        with pytest.raises(WorkerDied, match="was killed by signal 9 at the task spool"):
            build(make(tmp_path / "d"), progress=False, workers=2)
    assert len([p for p in (tmp_path / ".d.building" / "spool").iterdir() if ".tmp-" not in p.name]) >= 3
    build(make(tmp_path / "d"), progress=False)
    assert contents(tmp_path / "d") == expected


def test_parts_follow_files_and_sizes(make, sources, tmp_path):
    files = sorted(sources.glob("*.jsonl"))
    parts = plan_parts(make(tmp_path / "d", part_bytes=30_000))
    assert len(parts) > len(files), "large files are cut"
    assert sorted({piece.path for part in parts for piece in part.pieces}) == list(map(str, files))
    (whole,) = plan_parts(make(tmp_path / "d", part_bytes=1 << 30))
    assert [piece.path for piece in whole.pieces] == list(map(str, files)), "small files are read together"
    (capped,) = plan_parts(make(tmp_path / "d", part_bytes=30_000, max_source_bytes=100_000))
    assert [(piece.unit, piece.source.max_bytes) for piece in capped.pieces] == [("source", 100_000)]


def test_budgets_and_weights_give_the_same_dataset_for_any_workers_and_parts(make, sources, tmp_path):
    first, *others = sorted(map(str, sources.glob("*.jsonl")))
    named = [
        {"spec": first, "max_documents": 50},
        {"spec": others[0], "weight": 0.5},
        {"spec": others[1], "max_bytes": 60_000, "weight": 0.9},
        *others[2:],
    ]
    one = build(make(tmp_path / "one", sources=named, part_bytes=1 << 30), progress=False)
    build(make(tmp_path / "two", sources=named[::-1], part_bytes=20_000), progress=False, workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    reports = one.index.report["sources"]
    assert reports[first]["documents_read"] == 50
    assert 50_000 < reports[others[1]]["bytes_read"] <= 60_000
    assert one.index.config["sources"][:2] == named[:2]


@pytest.fixture(scope="module")
def compared(sources, texts, tmp_path_factory):
    """Settings with every kind of cleaning, and two more files with near duplicates and text of a benchmark."""
    folder = tmp_path_factory.mktemp("compared")
    more = write_jsonl(folder / "more.jsonl", [text + f" One more word {n}." for n, text in enumerate(texts[:60])])
    asked = write_jsonl(folder / "benchmark.jsonl", [texts[3], texts[99]])
    return {
        "sources": [str(sources / "*.jsonl"), str(more)],
        "clean": {
            "rules": {"min_words": 20, "curly_braces": True},
            "pii": ["email", "ip"],
            "near_dedup": {},
            "decontaminate": {"files": [str(asked)]},
        },
    }


def test_near_dedup_and_decontamination_change_no_byte_over_workers_and_stops(tmp_path, make, compared, monkeypatch):
    report = build(make(tmp_path / "one", **compared), progress=False).index.report
    assert report["rejected"]["near_duplicate"] >= 30
    assert report["rejected"]["contaminated"] >= 2
    build(make(tmp_path / "two", **compared, part_bytes=25_000), progress=False, workers=3)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    stops = ("compare.join_sketches", "compare.texts_of", "build_stages.make_overlaps", "encode.train_tokenizer")
    for number, stage in enumerate(stops):
        output = tmp_path / f"stopped{number}"

        def stop(*_, **__):
            raise _Stopped

        with monkeypatch.context() as patch:
            patch.setattr(f"data_pipeline.{stage}", stop)
            with pytest.raises(_Stopped):
                build(make(output, **compared), progress=False)
        found = tmp_path / f".stopped{number}.building" / "overlaps" / "found" / "report.json"
        assert found.exists() == (stage == "encode.train_tokenizer")
        build(make(output, **compared), progress=False, workers=2)
        assert contents(output) == contents(tmp_path / "one")


def test_a_changed_benchmark_is_another_build(tmp_path, make, compared, texts):
    benchmark = Path(compared["clean"]["decontaminate"]["files"][0])
    before = build_plan.fingerprint_of(make(tmp_path / "d", **compared))
    write_jsonl(benchmark, [texts[3], texts[99], texts[7]])
    assert build_plan.fingerprint_of(make(tmp_path / "d", **compared)) != before


def test_a_smaller_budget_of_the_source_wins_over_the_general_one(make, sources, tmp_path):
    first, second, *_ = sorted(map(str, sources.glob("*.jsonl")))
    named = [{"spec": first, "max_bytes": 40_000}, {"spec": second, "max_bytes": 90_000}]
    parts = plan_parts(make(tmp_path / "d", sources=named, max_source_bytes=60_000))
    assert [part.pieces[0].source.max_bytes for part in parts] == [40_000, 60_000]


def test_of_two_that_finish_the_same_task_one_stays(tmp_path):
    target = tmp_path / "stage" / "00000"
    with finished_directory(target) as slow:
        (slow / "x").write_text("slow", encoding="utf-8")
        with finished_directory(target) as fast:
            (fast / "x").write_text("fast", encoding="utf-8")
    assert [p.name for p in target.parent.iterdir()] == ["00000"]
    assert (target / "x").read_text(encoding="utf-8") == "fast"
    with pytest.raises(ZeroDivisionError), finished_directory(tmp_path / "stage" / "00001"):
        _ = 1 / 0
    assert [p.name for p in target.parent.iterdir()] == ["00000"]


def test_a_plan_survives_the_disk(make, tmp_path):
    plan = build_plan.make_plan(make(tmp_path / "d"), "f" * 64)
    plan.directory.mkdir()
    build_plan.write_plan(plan)
    assert build_plan.read_plan(plan.directory) == plan
    (plan.directory / "plan.json").write_text(json.dumps({"fingerprint": 1}), encoding="utf-8")
    with pytest.raises(DataError, match="is no work directory of this version"):
        build_plan.read_plan(plan.directory)
