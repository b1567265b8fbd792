"""What `pha doctor` finds on this machine and on made-up ones."""

from __future__ import annotations

import json
import subprocess
import time
from importlib import metadata

import pytest

from cluster import doctor, doctor_slurm
from cluster.doctor import Wanted
from cluster.doctor_lines import possible
from tests.cluster.test_slurm import stand_in
from tests.e2e.runs import CONFIG, pha, write_config


def test_here_training_is_possible_and_that_is_known_soon(tmp_path, tiny_dataset):
    began = time.monotonic()
    done = pha("doctor", write_config(tmp_path, tiny_dataset, tmp_path / "run"), "--json")
    assert time.monotonic() - began < 30
    told = json.loads(done.stdout)
    by_name = {line["name"]: line for line in told["lines"]}
    assert done.returncode == 0 and told["possible"], [line for line in told["lines"] if line["state"] == "missing"]
    assert {"python", "packages", "compiler", "memory", "run folder", "dataset", "/dev/shm", "open files", "own name",
            "clock", "torch", "GPUs", "triton"} <= by_name.keys()  # fmt: skip
    assert all(line["advice"] for line in told["lines"] if line["state"] != "ok")
    assert not (tmp_path / "run").exists(), "it only looks"


def test_a_dataset_that_is_not_there_makes_it_impossible(tmp_path):
    text = CONFIG + f"\ncluster: {{interface: nosuch0}}\nrun_dir: {tmp_path / 'run'}\n"
    (tmp_path / "run.yaml").write_text(text.replace("data: {", f"data: {{path: {tmp_path / 'absent'}, "))
    done = pha("doctor", tmp_path / "run.yaml")
    assert done.returncode == 1 and "Training is not possible here." in done.stdout
    assert "build it with `pha data build`" in done.stdout and "no nosuch0" in done.stdout


def lines(check):
    return {line.name: line for line in check}


def test_an_older_python_and_absent_packages(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 1))
    assert not possible(doctor.python())
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=2", "no-such-thing>=1", 'boto3; extra == "s3"'])
    (line,) = doctor.packages()
    assert line.state == "missing" and line.found == "absent: no-such-thing"
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch<1"])
    (line,) = doctor.packages()
    assert line.state == "warning" and "(torch<1)" in line.found


def test_a_compiler_is_only_asked_for_where_something_needs_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor.sys, "executable", str(tmp_path / "python"))
    (line,) = doctor.compiler(Wanted())
    assert line.state == "warning" and "g++" in line.found and "ninja" in line.found
    (line,) = doctor.compiler(Wanted(compiles="train.compile"))
    assert line.state == "missing" and line.advice.startswith("train.compile cannot work")


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    assert lines(doctor.folder(tmp_path / "a" / "b"))["run folder"].state in ("ok", "warning")
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert not possible(doctor.folder(tmp_path))


def asked(tmp_path, **told):
    known = {"version": "2.13.0", "cuda": None, "hip": None, "gpus": [], "gloo": True, "nccl": False} | told
    return subprocess.Popen(["echo", json.dumps(known)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


GPU = "0, NVIDIA H100, 550.54, 0, 33, 345, 1980, 0x1, 69.7, 700.0, 4, 81559"


def test_a_cpu_build_beside_a_gpu_is_named(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "nvidia-smi", f"echo '{GPU}'")
    found = lines(doctor.devices(asked(tmp_path), Wanted()))
    assert found["torch"].state == "warning" and "reaches no GPU, and 1 are there" in found["torch"].found
    assert lines(doctor.devices(asked(tmp_path), Wanted(gpus=1)))["torch"].state == "missing"
    well = lines(doctor.devices(asked(tmp_path, cuda="12.8", gpus=["NVIDIA H100"], nccl=True), Wanted(gpus=1)))
    assert well["torch"].state == well["GPUs"].state == "ok" and "driver 550.54" in well["GPUs"].found


def test_a_torch_that_does_not_come_up_is_told_in_its_own_words():
    broken = subprocess.Popen(
        ["sh", "-c", "echo 'ImportError: libfoo.so' >&2; exit 1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    (line,) = doctor.devices(broken, Wanted())
    assert line.state == "missing" and line.found == "ImportError: libfoo.so"


def test_a_check_that_fails_does_not_hide_the_others(monkeypatch):
    def broken():
        raise ZeroDivisionError("x")

    monkeypatch.setattr(doctor, "shared_memory", broken)
    monkeypatch.setattr(doctor, "_start_torch", lambda: asked(None))
    found = lines(doctor.machine(Wanted()))
    assert "ZeroDivisionError" in found["a check"].found and {"python", "torch", "clock"} <= found.keys()


# --- Slurm, played ---------------------------------------------------------------------------------------------

PARTITIONS = (
    "PartitionName=main AllowGroups=ALL Default=YES GraceTime=10 MaxNodes=8 MaxTime=2-00:00:00 State=UP TotalNodes=16\n"
    "PartitionName=old Default=NO GraceTime=0 MaxNodes=UNLIMITED MaxTime=UNLIMITED State=DOWN TotalNodes=2\n"
)


def test_settings_are_explained():
    settings = {"KillWait": "10 sec", "SlurmdTimeout": "300 sec", "ProctrackType": "proctrack/linuxproc",
                "PreemptMode": "REQUEUE"}  # fmt: skip
    found = lines(doctor_slurm.meanings(settings))
    assert found["KillWait"].state == "warning" and "10 s to save" in found["KillWait"].advice
    assert "lost after 300 s" in found["SlurmdTimeout"].advice and found["ProctrackType"].state == "warning"
    well = lines(
        doctor_slurm.meanings({"KillWait": "30 sec", "ProctrackType": "proctrack/cgroup", "PreemptMode": "OFF"})
    )
    assert well.keys() == {"KillWait"} and well["KillWait"].state == "ok"


def test_partitions_and_their_limits():
    main, old = doctor_slurm.partitions(PARTITIONS, 4)
    assert (
        main.state == "ok"
        and "main (default): UP, 16 nodes, at most 8 a job and 2-00:00:00; GraceTime 10 s" in main.found
    )
    assert old.state == "warning"
    assert not possible(doctor_slurm.partitions(PARTITIONS, 17)) and not possible(doctor_slurm.partitions("", 1))


def test_a_machine_without_slurm_can_train_but_not_on_two_nodes(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert possible(doctor_slurm.lines(1)) and not possible(doctor_slurm.lines(2))


@pytest.mark.parametrize(
    ("answer", "state"), [("Slurmctld(primary) at ctl is UP", "ok"), ("Slurmctld(primary) at ctl is DOWN", "missing")]
)
def test_the_controller_is_asked(monkeypatch, tmp_path, answer, state):
    for name in doctor_slurm.COMMANDS:
        stand_in(
            tmp_path, monkeypatch, name, f"case $1 in ping) echo '{answer}';; --version) echo slurm 22.05.8;; esac"
        )
    found = lines(doctor_slurm.lines(2))
    assert found["controller"].state == state
    assert ("slurm" in found) == (state == "ok") and lines(doctor_slurm.lines(1))["controller"].state != "missing"


def test_an_old_slurm_and_a_credential(monkeypatch, tmp_path):
    stand_in(tmp_path, monkeypatch, "sinfo", "echo slurm 19.05.2")
    assert not possible(doctor_slurm._version(doctor_slurm.missing))
    stand_in(tmp_path, monkeypatch, "munge", "echo MUNGE:abc:")
    stand_in(tmp_path, monkeypatch, "unmunge", "test \"$(cat)\" = MUNGE:abc: && echo 'STATUS: Success (0)'")
    assert [line.state for line in doctor_slurm.munge({})] == ["ok"]
    stand_in(tmp_path, monkeypatch, "munge", "echo 'munge: Error: Failed to access socket' >&2; exit 1")
    (line,) = doctor_slurm.munge({})
    assert line.state == "warning" and "Failed to access" in line.found
    assert list(doctor_slurm.munge({"AuthType": "auth/slurm"})) == []
