"""`pha data build --launch` and `pha data status`, without a Slurm; `tests/slurm/test_array.py` has a real one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.array import ArrayJob
from data_pipeline.build_array import Order
from data_pipeline.claims import end
from pretrain.array_config import ArrayConfig
from pretrain.cli_array import array_config
from pretrain.errors import RunError
from tests.conftest import write_corpus
from tests.e2e.runs import pha


@pytest.fixture
def build_file(tmp_path):
    """settings of the section → a build's file."""

    def write(**cluster):
        corpus = write_corpus(tmp_path / "corpus.jsonl", stop=6)
        tree = {"sources": [str(corpus)], "output": str(tmp_path / "d"), "cluster": cluster}
        (tmp_path / "d.yaml").write_text(yaml.safe_dump(tree))
        return tmp_path / "d.yaml"

    return write


def test_a_dry_run_prints_the_script_and_writes_nothing(tmp_path, build_file):
    path = build_file(partition="cpu", memory="8G", cpus_per_task=4, at_once=2, options={"nice": "100"})
    done = pha("data", "build", path, "--launch", "--tasks", 8, "--cluster", "time=2:00:00", "--dry-run")
    assert done.returncode == 0, done.stderr
    for line in ("array=1-8%2", "cpus-per-task=4", "mem=8G", "time=0-02:00:00", "partition=cpu", "nice=100"):
        assert f"#SBATCH --{line}\n" in done.stdout
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0
    assert {p.name for p in tmp_path.iterdir()} == {"corpus.jsonl", "d.yaml"}


@pytest.mark.parametrize(
    ("cluster", "arguments", "words"),
    [
        ({"partitoin": "x"}, ["--launch"], "unknown key 'partitoin', the nearest is 'partition'"),
        ({"partition": "x; rm"}, [], "'partition' is 'x; rm'"),
        ({"time": "1:30"}, ["--launch"], "leaves no time to work"),
        ({}, ["--launch", "--cluster", "tasks"], "must look like key.sub=value"),
        ({}, ["--launch", "--workers", "2"], "--cluster cpus_per_task=N is"),
        ({}, ["--tasks", "2"], "are of --launch; add it"),
        ({}, ["--launch"], "no login node of a Slurm cluster"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(build_file, monkeypatch, cluster, arguments, words):
    monkeypatch.setenv("PATH", "/nowhere")
    done = pha("data", "build", build_file(**cluster), *arguments)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_the_section_must_be_one():
    with pytest.raises(RunError, match="must be a mapping"):
        array_config([1], (), None, "x.yaml")
    assert array_config({"tasks": 2}, ["tasks=3", "env.A=1 2"], None, "x").env == {"A": "1 2"}
    assert array_config({}, (), 9, "x").directives() == {
        "array": "1-9", "nodes": "1", "ntasks": "1", "cpus-per-task": "1"
    }  # fmt: skip


def test_a_build_on_this_machine_takes_no_notice_of_the_section(tmp_path, build_file):
    path = build_file(partition="cpu")
    tree = yaml.safe_load(path.read_text()) | {"tokenizer": {"vocab_size": 400}, "test_fraction": 0.1}
    path.write_text(yaml.safe_dump(tree | {"validation_fraction": 0.1}))
    assert pha("data", "build", path).returncode == 0 and (tmp_path / "d" / "index.json").exists()


def test_a_launch_writes_what_its_tasks_need_and_submits_once(tmp_path, build_file, monkeypatch):
    (programs := tmp_path / "bin").mkdir()
    for name, script in {"sbatch": "echo 17", "squeue": "printf '17_1|PENDING\\n'"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    path = build_file(tasks=2, tries=7, silent_s=30)
    done = pha("data", "build", path, "--launch", "--json")
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout)["folder"])
    assert folder == tmp_path / "d.launch" / "000001"
    frozen = yaml.safe_load((folder / "config.yaml").read_text())
    assert frozen["output"] == str(tmp_path / "d") and frozen["cluster"]["tries"] == 7
    assert Order.load(folder).patience.tries == 7 and (tmp_path / ".d.building" / "plan.json").exists()
    assert {p.name for p in (folder / "code").iterdir()} == {"data_pipeline", "cluster"}
    assert ArrayJob.load(folder).command == ["-m", "data_pipeline.build_task", str(folder)]
    again = pha("data", "build", path, "--launch")
    assert again.returncode == 2 and "Job 17 builds" in again.stderr
    shown = pha("data", "status", tmp_path / "d")
    assert "unfinished" in shown.stdout and "waiting for a place: 17_1" in shown.stdout
    end(folder, "failed", "the text is bad.", "17_1")
    shown = pha("data", "status", tmp_path / "d").stdout
    assert f"{tmp_path / 'd'}: failed" in shown and "first error: task 17_1: the text is bad." in shown
    assert "No build of" in pha("data", "status", tmp_path / "e").stderr


def test_defaults_hold_no_surprise():
    assert ArrayConfig().tasks == 4 and ArrayConfig().silent_s > 60, "NFS may show another node's file 60 s late"
