"""The script of a job, and Slurm's words read from stand-ins for its commands; `tests/slurm` has a real one."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster import slurm
from cluster.errors import ClusterError
from cluster.job import Job, freeze, largest_world, new_folder
from pretrain import cli_cluster, config_file
from pretrain.errors import RunError
from pretrain.rundir import RunDirectory
from tests.e2e.runs import CONFIG, pha, write_config


def job(**changes) -> Job:
    known = Job(
        run="/runs/a", folder="/runs/a/launch/000001", python="/env/bin/python", nodes=4, spare_nodes=1,
        ranks_per_node=2,
        gpus_per_node=2, cpus_per_rank=None, batches=[8], elastic=True, directives={"nodes": "5", "time": "12:00:00"},
        modules=["cuda/12.4"], env={"HF_HOME": "/data/a b"}, interface="ib0", lead_s=120,
        silent_s={"": 60.0}, relaunches=3, successors=9,
    )  # fmt: skip
    return dataclasses.replace(known, **changes)


def test_the_script_is_bash_and_says_what_was_asked_for():
    text = slurm.render(job())
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    assert "#SBATCH --nodes=5\n#SBATCH --time=12:00:00\n" in text and "#SBATCH --signal=B:USR1@120\n" in text
    assert "export PYTHONSAFEPATH=1\n" in text, "the checkout that it is launched from is not the code that it runs"
    assert "export HF_HOME='/data/a b'\n" in text and "export NCCL_SOCKET_IFNAME=ib0\n" in text
    assert text.endswith("exec /env/bin/python -m cluster.job_supervisor /runs/a/launch/000001\n")


@given(st.text(max_size=30), st.text(max_size=30).filter(lambda text: "\0" not in text))
def test_nothing_of_a_config_reaches_the_shell_unquoted(name, value):
    """All that bash would run is one exec; what a line could smuggle in is inside a quoted word, or refused."""
    try:
        text = slurm.render(job(env={"X": value}, directives={"job-name": name}, python=value or "p"))
    except ClusterError as error:
        assert "#SBATCH" in str(error)
        return
    directives, _, script = text.partition("set -eu\n")
    assert all(line.startswith("#") for line in directives.split("\n") if line)
    words = shlex.split(script, comments=True)
    assert f"X={value}" in words and words.count("exec") <= 1 + (value == "exec") * 2
    assert words[words.index("-m") :] == ["-m", "cluster.job_supervisor", "/runs/a/launch/000001"] or value == "-m"


@given(st.integers(1, 64), st.integers(1, 8), st.lists(st.integers(1, 512), min_size=1, max_size=3))
def test_the_largest_world_divides_every_batch(nodes, ranks, batches):
    found = largest_world(nodes, ranks, batches)
    fits = [n for n in range(1, nodes + 1) if all(size % (n * ranks) == 0 for size in batches)]
    assert found == (max(fits) if fits else 0)


def stand_in(folder, monkeypatch, name, script):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_nodes_that_do_not_answer_are_left_out(tmp_path, monkeypatch):
    states = "n1 allocated\nn2 down*\nn3 allocated*\nn4 draining\nn5 mixed"
    stand_in(tmp_path, monkeypatch, "sinfo", f"printf '{states}\\n'")
    assert slurm.answering(["n1", "n2", "n3", "n4", "n5", "n6"]) == ["n1", "n4", "n5"]
    steps = "7.batch batch\\n7.0 ranks\\n7.1 preflight\\n7.2 deputy\\n7.extern extern\\n7.12 ranks\\n"
    stand_in(tmp_path, monkeypatch, "squeue", f"printf '{steps}'")
    assert slurm.steps_of("7") == ["7.0", "7.12"] and slurm.looking_steps("7") == ["7.1"]


def test_what_slurm_refuses_is_told_in_its_own_words(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "sbatch", "echo 'invalid partition specified: x' >&2; exit 1")
    folder = new_folder(tmp_path)
    with pytest.raises(ClusterError, match="sbatch refuses: invalid partition"):
        slurm.submit(job(folder=str(folder)), test_only=True)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(ClusterError, match="no login node of a Slurm cluster"):
        slurm.submit(job(folder=str(folder)))


def test_a_launch_has_a_folder_of_its_own_and_reads_back_what_it_wrote(tmp_path):
    first, second = new_folder(tmp_path), new_folder(tmp_path)
    assert (first.name, second.name) == ("000001", "000002")
    (package := tmp_path / "package").mkdir()
    (package / "code.py").write_text("x = 1\n")
    (package / "__pycache__").mkdir()
    freeze(second, "a: 1\n", [package])
    assert [p.name for p in (second / "code" / "package").iterdir()] == ["code.py"]
    job(folder=str(second)).save()
    assert Job.load(second) == job(folder=str(second))
    with pytest.raises(ClusterError, match="launch the run again"):
        Job.load(first)


def config(tmp_path, **cluster):
    tree = yaml.safe_load(CONFIG)
    tree["data"]["path"] = str(tmp_path / "data")
    return config_file.parse({**tree, "run_dir": str(tmp_path / "run"), "cluster": cluster}, "test")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"nodes": 3}, r"global_batch \(8\) must be a multiple of the number of ranks \(3\)"),
        ({"time": "2:00"}, "leaves no time to train"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_queued(tmp_path, settings, words):
    with pytest.raises(RunError, match=words):
        cli_cluster._job(config(tmp_path, **settings), tmp_path / "run", tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"partition": "a; rm -rf /"},
        {"account": "$(id)"},
        {"options": {"wrap": "a b"}},
        {"options": {"Bad Name": "1"}},
        {"env": {"A=B": "1"}},
        {"modules": ["cuda\nid"]},
        {"time": "tomorrow"},
        {"exclude": ["n1 n2"]},
    ],
)
def test_names_are_names(tmp_path, settings):
    with pytest.raises(RunError):
        config(tmp_path, **settings)


@pytest.mark.parametrize(
    ("value", "seconds"), [("30:00", 1800), ("12:00:00", 43200), ("2-00:00:00", 172800), (43200, 43200), (1200, 1200)]
)
def test_times_with_and_without_quotes(tmp_path, value, seconds):
    assert config(tmp_path, time=value).cluster.time_s == seconds


def test_a_dry_run_needs_no_slurm_and_writes_nothing(tmp_path):
    path = write_config(tmp_path, "x", tmp_path / "run")
    shown = pha("launch", path, "--dry-run", "--nodes", 4, "cluster.partition=long")
    assert shown.returncode == 0, shown.stderr
    assert "#SBATCH --nodes=4\n" in shown.stdout and "#SBATCH --partition=long\n" in shown.stdout
    assert not (tmp_path / "run").exists()


def test_what_the_nodes_would_refuse_is_refused_before_the_queue(tmp_path):
    run = tmp_path / "run"
    path = write_config(tmp_path, "x", run)
    run.mkdir()
    RunDirectory(run).write(config_file.load(path, ["model.vocab_size=512", "data.lanes=8"]))  # as the data settles it
    refused = pha("launch", path, "train.seed=7")
    assert refused.returncode == 2 and "train.seed was 0 and is now 7" in refused.stderr, refused.stderr
    assert len(refused.stderr.splitlines()) == 1 and not (run / "launch").exists()


def test_a_controller_that_restarts_is_waited_for_and_a_refusal_is_not(tmp_path, monkeypatch):
    script = (
        f"if test -e {tmp_path}/up; then echo n1 idle; else touch {tmp_path}/up; "
        "echo 'slurm_load_node: Unable to contact slurm controller (connect failure)' >&2; exit 1; fi"
    )
    stand_in(tmp_path, monkeypatch, "sinfo", script)
    slept = []
    assert slurm.patiently(["sinfo"], slept.append) == "n1 idle\n" and slept == [5.0]
    stand_in(tmp_path, monkeypatch, "squeue", "echo 'Invalid job id specified' >&2; exit 1")
    with pytest.raises(ClusterError, match="Invalid job id"):
        slurm.patiently(["squeue"], slept.append)


@pytest.mark.parametrize(("partition", "seconds"), [(None, 30.0), ("long", 0.0), ("bare", None)])
def test_a_partitions_grace(tmp_path, monkeypatch, partition, seconds):
    lines = {
        None: "PartitionName=main Default=YES GraceTime=30 Hidden=NO",
        "long": "PartitionName=long Default=NO GraceTime=0 Hidden=NO",
        "bare": "PartitionName=bare Default=NO",
    }
    shown = [lines[partition]] if partition else list(lines.values())
    monkeypatch.setattr(slurm, "command", lambda arguments: "\n".join(reversed(shown)))
    assert slurm.grace_s(partition) == seconds


def told_in_turn(monkeypatch, *states):
    """What sinfo says of n1 to n3, each time it is asked, the last one for ever. Returns a clock that stands still."""
    clock, answers = [0.0], list(states)
    monkeypatch.setattr(slurm.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(slurm, "patiently", lambda _: answers.pop(0) if len(answers) > 1 else answers[0])
    return clock


def passes(clock):
    def sleep(seconds):
        clock[0] += seconds

    return sleep


def test_a_node_that_is_silent_for_a_moment_is_waited_for_where_it_is_needed(monkeypatch):
    """After a node has crashed, Slurm shows healthy ones as silent for some seconds (docs/scale.md)."""
    silent, well = "n1 mixed\nn2 mixed*\nn3 down*\n", "n1 mixed\nn2 mixed\nn3 down*\n"
    clock = told_in_turn(monkeypatch, silent, silent, well)
    assert slurm.answering(["n1", "n2", "n3"], 2, passes(clock)) == ["n1", "n2"] and clock[0] == 4.0
    clock = told_in_turn(monkeypatch, silent)
    assert slurm.answering(["n1", "n2", "n3"], 1, passes(clock)) == ["n1"] and clock[0] == 0.0, "there are enough"
    clock = told_in_turn(monkeypatch, silent)
    assert slurm.answering(["n1", "n2", "n3"], 2, passes(clock)) == ["n1"]
    assert slurm.SETTLE_S < clock[0] <= slurm.SETTLE_S + 2.0
    clock = told_in_turn(monkeypatch, silent.replace("mixed*", "down*"))
    assert slurm.answering(["n1", "n2", "n3"], 3, passes(clock)) == ["n1"] and clock[0] == 0.0, "the lost never answer"
    assert slurm.answering([], 3) == []
