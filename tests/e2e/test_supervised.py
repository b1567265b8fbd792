"""`pha train --supervise`: real ranks that die and hang, and a run that does not care."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from cluster.run_files import events
from pretrain.checkpoint import newest
from pretrain.files import sha256
from tests.e2e.runs import ROOT, command, start, training, wait_for, write_config

PATIENCE_S = 300.0


class Supervised:
    """The supervisor as a process."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            command("train", *arguments, "--ranks", 2, "--supervise"), cwd=ROOT, stderr=subprocess.PIPE, text=True
        )

    def poll(self):
        return self.process.poll()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def pid_of(run, rank):
    return int(json.loads((run / "heartbeats" / f"rank-{rank}.json").read_text())["pid"])


@pytest.fixture(scope="module")
def undisturbed(tiny_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("supervised")
    config = write_config(folder, tiny_dataset, folder / "run")
    assert start(folder / "run", config, "train.steps=24", "eval.every=0").wait() == 0
    return config, folder / "run"


def test_a_killed_and_then_a_frozen_rank_cost_two_starts_and_no_bit(undisturbed, tmp_path):
    config, reference = undisturbed
    run = tmp_path / "run"
    with Supervised(config, f"run_dir={run}", "train.steps=24", "eval.every=0", "watchdog.step_s=10") as job:
        wait_for(job, lambda: 6 in training(run))
        os.kill(pid_of(run, 1), signal.SIGKILL)
        wait_for(job, lambda: 10 in training(run) and (run / "generations" / "000002.json").exists())
        os.kill(pid_of(run, 1), signal.SIGSTOP)
        words = job.process.communicate(timeout=180)[1]
        assert job.process.returncode == 0, words
    ended = [e for e in events(run) if e["event"] == "end"]
    assert [e["decision"] for e in ended] == ["relaunch", "relaunch", "finish"]
    assert [e["cause"]["kind"] for e in ended] == ["killed", "hang", "done"]
    assert ended[1]["cause"]["rank"] == 1, "the one that was frozen, not the one that noticed"
    assert "supervisor: start 1 ended" in words and "Traceback" not in words
    assert training(run) == training(reference)
    assert sha256(newest(run / "checkpoints").weights) == sha256(newest(reference / "checkpoints").weights)


def test_it_passes_a_stop_on_and_gives_up_what_no_start_mends(undisturbed, tmp_path):
    config, _ = undisturbed
    run = tmp_path / "run"
    with Supervised(config, f"run_dir={run}", "train.steps=100000", "eval.every=0") as job:
        wait_for(job, lambda: 3 in training(run))
        job.process.send_signal(signal.SIGTERM)
        assert job.process.wait(60) == 75
    assert newest(run / "checkpoints").step == max(training(run))
    with Supervised(config, f"run_dir={run}", "train.steps=100000", "data.seed=9") as job:
        words = job.process.communicate(timeout=120)[1]
        assert job.process.returncode == 1 and "data.seed" in words and "Next: give up" in words
    assert len([e for e in events(run) if e["event"] == "end"]) == 2, "no second try"


def on_host(name, file, *arguments):
    """The supervisor of one of the hosts in the file, which are all this machine."""
    return Supervised(*arguments, "--hosts", file, "--host", name)


def test_two_hosts_meet_in_the_folder_and_lose_a_rank_and_a_supervisor_but_no_bit(undisturbed, tmp_path):
    config, reference = undisturbed
    run, file = tmp_path / "run", tmp_path / "hosts"
    file.write_text("a ranks=1 address=127.0.0.1  # leads\nb ranks=1 address=127.0.0.1\n")
    arguments = (config, f"run_dir={run}", "train.steps=24", "eval.every=0")
    with on_host("b", file, *arguments) as follower, on_host("a", file, *arguments) as leader:
        wait_for(leader, lambda: 6 in training(run), PATIENCE_S)
        os.kill(pid_of(run, 1), signal.SIGKILL)
        wait_for(leader, lambda: 10 in training(run) and (run / "generations" / "000002.json").exists(), PATIENCE_S)
        rank = pid_of(run, 1)
        follower.process.kill()
        with on_host("b", file, *arguments) as again:
            words = leader.process.communicate(timeout=PATIENCE_S)[1]
            assert leader.process.returncode == 0, words
            assert again.process.wait(60) == 0, "it leaves as the leader does"
        assert not Path(f"/proc/{rank}").exists(), "the ranks of a supervisor die with it"
        with on_host("c", file, *arguments) as unknown:
            assert "The host c is not in" in unknown.process.communicate(timeout=PATIENCE_S)[1]
    ended = [e for e in events(run) if e["event"] == "end"]
    assert [e["decision"] for e in ended] == ["relaunch", "relaunch", "finish"]
    assert [e["ranks"] for e in events(run) if e["event"] == "start"] == [2, 2, 2]
    assert "Traceback" not in words
    assert training(run) == training(reference)
    assert sha256(newest(run / "checkpoints").weights) == sha256(newest(reference / "checkpoints").weights)
