"""The look at nodes before a start, on a real Slurm: what is wrong with a node is found, named, and not used."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from cluster.cordon import FILE, Cordon
from cluster.run_files import events
from tests.e2e.runs import training, write_config
from tests.slurm import bed

PATIENCE_S = 100.0
SHORT = ("train.steps=4", "eval.every=0", "cluster.time=20:00", "cluster.slow_node=0")  # all nodes share two cores
BED = {"node_timeout_s": 600}  # Slurm itself notices nothing here


@pytest.fixture(scope="module")
def folder(shared, tiny_dataset):
    """A folder that all nodes see, with the dataset in it."""
    shutil.copytree(tiny_dataset, shared / "data")
    write_config(shared, shared / "data", shared / "reference")
    return shared


def launch(folder, run, *overrides):
    bed.told(sys.executable, "-m", "pretrain.cli", "launch", str(folder / "run.yaml"), f"run_dir={run}", *overrides)


def wait(condition, words):
    bed.wait_until(condition, PATIENCE_S, words)


def fill_tmp(host):
    """A /tmp of 256 KiB with nothing left in it, below which all that is shared is seen as before."""
    seen = [path for path in {bed.SHARED, bed.ROOT, Path(sys.prefix)} if path.is_relative_to("/tmp")]
    keep = [f"mkdir -p /run/keep/{i} && mount --rbind {path} /run/keep/{i}" for i, path in enumerate(seen)]
    back = [f"mkdir -p {path} && mount --rbind /run/keep/{i} {path}" for i, path in enumerate(seen)]
    steps = [*keep, "mount -t tmpfs -o size=256k,mode=1777 tmpfs /tmp", *back]
    bed.enter(host, "sh", "-c", f"{' && '.join(steps)}; cat /dev/zero > /tmp/fill 2>/dev/null; true", check=True)


def leave_rank(host, config, job="1"):
    """A process with the words of a rank, of a job that is no more."""
    words = f"-m pretrain.cli train {config}"
    python = f"{sys.executable} -c 'import time; time.sleep(600)' {words}"
    bed.enter(host, "sh", "-c", f"SLURM_JOB_ID={job} setsid {python} >/dev/null 2>&1 </dev/null &", check=True)


def ranks_on(host):
    return bed.enter(host, "pgrep", "-f", "pretrain.cli train", capture_output=True).stdout.split()


def test_nodes_with_a_full_disk_a_cut_cable_and_stray_ranks_are_named_and_not_used(folder):
    run = folder / "run"
    fill_tmp("n2")
    leave_rank("n3", "/elsewhere/config.yaml")
    leave_rank("n3", run / "launch" / "000000" / "config.yaml")
    wait(lambda: len(ranks_on("n3")) == 2, "two stray ranks")
    bed.cable("n4", "down")
    launch(folder, run, *SHORT, "cluster.nodes=1", "cluster.spare_nodes=3")
    wait(lambda: [e for e in events(run) if e["event"] == "end"], "the end of the run")
    bed.cable("n4", "up")
    looked, start, end = [e for e in events(run) if e["event"] in ("preflight", "start", "end")]
    assert set(looked["left_out"]) == {"n2", "n4"} and set(looked["poor"]) == {"n3"}
    assert "tmp" in looked["left_out"]["n2"] and "did not answer" in looked["left_out"]["n4"]
    assert "is a rank of job 1, which has ended (/elsewhere/config.yaml)" in looked["poor"]["n3"]
    assert start["nodes"] == ["n1"] and end["decision"] == "finish" and max(training(run)) == 4
    assert len(ranks_on("n3")) == 1, "the one of this run was ended, the other one is somebody's"
    assert list(Cordon(run / FILE).active()) == ["n2", "n4"]
    (n3,) = [v for v in json.loads(Path(looked["file"]).read_text())["verdicts"] if v["node"] == "n3"]
    assert len(n3["figures"]["ended"]) == 1
    (log,) = (run / "logs").glob("job-*.out")
    text = log.read_text()
    assert "Subject: node n2 seems to be defective" in text and "n1  good" in text
    bed.enter("n3", "pkill", "-f", "/elsewhere/config.yaml", check=True)
    bed.enter("n2", "umount", "--lazy", "/tmp", check=True)


def test_a_bad_link_between_two_good_nodes_is_found_and_costs_one_of_them(folder):
    wait(lambda: len(bed.idle()) == 4, "idle nodes")
    for host, other in (("n2", "n3"), ("n3", "n2")):
        bed.enter(host, "ip", "route", "add", "blackhole", f"{bed.address(other)}/32", check=True)
    run, job = folder / "run", folder / "run" / "launch" / "000001" / "job.json"
    told = json.loads(job.read_text())
    told["nodes"] = 4
    told["preflight"]["limit_s"] = 15.0  # so that a sum that does not end is given up after 5 s
    job.write_text(json.dumps(told))
    script = f"PYTHONPATH={bed.ROOT} exec {sys.executable} -m cluster.preflight {job.parent}"
    before = set((run / "preflight").glob("*.json"))
    bed.told("sbatch", "-N4", f"--output={folder}/look.out", "--wrap", script)
    wait(lambda: set((run / "preflight").glob("*.json")) - before, "the report")
    (path,) = set((run / "preflight").glob("*.json")) - before
    report = json.loads(path.read_text())
    states = {verdict["node"]: verdict["state"] for verdict in report["verdicts"]}
    assert states == {"n1": "good", "n2": "good", "n3": "bad", "n4": "good"}, (folder / "look.out").read_text()
    assert report["links"] == [["n2", "n3"]] and not report["problem"]
    for host, other in (("n2", "n3"), ("n3", "n2")):
        bed.enter(host, "ip", "route", "del", "blackhole", f"{bed.address(other)}/32", check=True)
