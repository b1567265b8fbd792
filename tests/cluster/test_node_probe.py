"""What a node says of itself, on this machine and on made-up ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cluster import node_probe
from cluster.node_probe import END, HELLO, RANK, Question
from tests.e2e.runs import ROOT


def answers(question, **env):
    done = subprocess.run(
        [sys.executable, "-m", "cluster.node_probe", question.text()], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "SLURMD_NODENAME": "n9", **env}, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_check_is_a_line_and_nothing_is_left_behind(tmp_path, tiny_dataset):
    lines = answers(Question(str(tmp_path), [str(tiny_dataset)]))
    by_name = {line["check"]: line for line in lines}
    assert [lines[0]["check"], lines[-1]["check"]] == [HELLO, END]
    assert {"memory", "interface", "ranks", "versions", "tmp", "shm", "run", "data"} < by_name.keys()
    assert not [line for line in lines if "error" in line] and {line["host"] for line in lines} == {"n9"}
    assert by_name["versions"]["torch"].startswith("2.") and by_name["run"]["write_s"] > 0
    assert by_name["data"]["shards"] >= 3 and not list(tmp_path.iterdir())


def test_what_cannot_be_done_is_told_and_the_rest_is_done(tmp_path):
    lines = answers(Question(str(tmp_path / "absent"), [str(tmp_path)], interface="nosuch0", gpus=1), PATH="/nowhere")
    errors = {line["check"]: line["error"] for line in lines if "error" in line}
    assert errors.keys() == {"run", "data", "interface", "gpus"} and lines[-1]["check"] == END
    assert "nvidia-smi is not installed" in errors["gpus"]


def test_a_shard_that_was_cut_is_named(tmp_path, tiny_dataset):
    index = json.loads((tiny_dataset / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(index))
    for split in index["splits"].values():
        for shard in split["shards"]:
            (tmp_path / shard["name"]).write_bytes(b"\0" * shard["bytes"])
    assert node_probe.dataset(tmp_path)["shards"] >= 1
    last = index["splits"]["train"]["shards"][-1]
    (tmp_path / last["name"]).write_bytes(b"\0" * (last["bytes"] - 1))
    with pytest.raises(ValueError, match=rf"{last['name']} has {last['bytes'] - 1} bytes, and its index says"):
        node_probe.dataset(tmp_path)


def test_lines_stay_short(capsys):
    node_probe.say("data", error="x" * 5000, place="y" * 200)
    line = capsys.readouterr().out
    assert len(line) <= node_probe.LINE_BYTES and "x" * 100 in json.loads(line)["error"]


def machine(root, available_kb, groups=""):
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(f"MemTotal: 64000000 kB\nMemAvailable: {available_kb} kB\nHugePages: 0\n")
    (root / "proc" / "self" / "cgroup").write_text(groups)


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_free_memory_is_what_the_tightest_group_leaves(tmp_path):
    machine(tmp_path, 8_000_000, "0::/system/job_7/step_0\n")
    top = tmp_path / "sys" / "fs" / "cgroup"
    group(top / "system" / "job_7" / "step_0", memory__max="max\n", memory__current="1\n", memory__stat="anon 1\n")
    stat = "anon 5\ninactive_file 1000\n"
    group(top / "system" / "job_7", memory__max="5000000\n", memory__current="3000000\n", memory__stat=stat)
    assert node_probe.free_memory(tmp_path)["free"] == 5_000_000 - 3_000_000 + 1000


def test_free_memory_in_the_older_groups_and_without_any(tmp_path):
    machine(tmp_path / "a", 8_000_000, "5:cpu:/x\n4:memory:/slurm/job_7\n")
    folder = tmp_path / "a" / "sys" / "fs" / "cgroup" / "memory"
    group(folder, memory__limit_in_bytes=f"{2**63 - 4096}\n", memory__usage_in_bytes="1\n", memory__stat="")
    group(
        folder / "slurm" / "job_7", memory__limit_in_bytes="9000\n", memory__usage_in_bytes="4000\n",
        memory__stat="total_inactive_file 500\n",
    )  # fmt: skip
    assert node_probe.free_memory(tmp_path / "a")["free"] == 5500
    machine(tmp_path / "b", 8_000_000)
    assert node_probe.free_memory(tmp_path / "b") == {"free": 8192000000, "total": 65536000000, "group": None}


@pytest.mark.parametrize(
    ("command", "config"),
    [
        (["python", "-m", "pretrain.cli", "train", "/runs/a/config.yaml"], "/runs/a/config.yaml"),
        (["srun", "-n2", "python", "-m", "pretrain.cli", "train"], ""),
        (["python", "-m", "pretrain.cli", "status", "train"], None),
        (["grep", "pretrain.cli", "train"], None),
        ([""], None),
    ],
)
def test_ranks_are_known_by_their_words(command, config):
    assert node_probe.rank_of(command) == config


def test_a_stray_rank_is_found_and_ended_and_another_process_of_its_number_is_not(tmp_path):
    code = "import time; print(flush=True); time.sleep(60)"
    words = ["-c", code, "-m", "pretrain.cli", "train", "/runs/z/config.yaml"]
    env = {**os.environ, "SLURM_JOB_ID": "4242"}
    stray = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, env=env)
    try:
        stray.stdout.readline()
        lines = answers(Question(str(tmp_path)))
        (found,) = [line for line in lines if line["check"] == RANK and line["pid"] == stray.pid]
        assert (found["job"], found["config"]) == ("4242", "/runs/z/config.yaml")
        other = node_probe.end_ranks([[stray.pid, found["began"] + 1], [os.getpid(), 1]])
        assert stray.poll() is None and other["left"] == [], "neither is what was seen: nothing is to be done"
        told = answers(Question(str(tmp_path), end={"n9": [[stray.pid, found["began"]]]}))
        assert [line["check"] for line in told] == [HELLO, "ended", END] and told[1]["ended"] == [stray.pid]
        assert stray.wait() == -9
    finally:
        stray.kill()
        stray.wait()
        stray.stdout.close()


def test_a_rank_of_an_exited_process_counts_no_more(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not buried
    assert node_probe._start_time(node_probe.Path(f"/proc/{child.pid}")) is None
    child.wait()
