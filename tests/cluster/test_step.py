"""The arguments of a step, and what stands between Slurm, torchrun and a rank; `tests/slurm` has a real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import step
from pretrain.errors import RunError
from tests.cluster.test_slurm import config, job, stand_in
from tests.e2e.runs import ROOT

SHIELD = [sys.executable, "-m", "cluster.shield"]


def test_srun_starts_a_task_a_rank_and_torchrun_a_task_a_node(tmp_path):
    known = job(cpus_per_rank=4)
    plain = step.by_srun(known, ["n1", "n3"], tmp_path)
    assert {"--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--nodelist=n1,n3", "--cpus-per-task=4"} <= set(plain)
    assert f"--output={tmp_path}/rank-%t.out" in plain and plain[-2:] == ["train", "/runs/a/launch/000001/config.yaml"]
    agents = step.by_torchrun(known, ["n1", "n3"], tmp_path, "17-3", "n1:20123")
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=8", "--gpus-per-node=2"} <= set(agents)
    own = agents[agents.index("torch.distributed.run") :]
    assert {"--nnodes=2", "--nproc-per-node=2", "--rdzv-endpoint=n1:20123", "--rdzv-id=17-3"} <= set(own)
    assert "--max-restarts=0" in own, "starting again is the supervisor's"
    rank = own[own.index("--no-python") + 1 :]
    assert rank == ["/env/bin/python", "-m", "cluster.shield", "rank", str(tmp_path), *plain[-5:]]
    assert "--cpu-bind=none" in step.by_torchrun(job(), ["n1"], tmp_path, "17-3", "n1:1")


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_a_signal_before_the_ranks_are_there_is_to_be_sent_again(launcher, tmp_path, monkeypatch):
    run = tmp_path / "run"
    stand_in(tmp_path, monkeypatch, "srun", 'echo "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE" > env; exec sleep 60')
    stand_in(tmp_path, monkeypatch, "squeue", "echo 7.0 ranks")
    stand_in(tmp_path, monkeypatch, "scancel", f'echo "$@" >> {tmp_path}/sent')
    monkeypatch.chdir(tmp_path)
    known = job(run=str(run), launcher=launcher)
    started = step.begin(known, "7", 2, ["n1"], {"MASTER_ADDR": "n1", "MASTER_PORT": "20001"})
    try:
        assert (run / "logs" / "start-000002").is_dir() and started.poll() is None
        (run / "generations").mkdir()
        (run / "generations" / "000001.json").touch()
        assert started.signal(signal.SIGUSR1) is (launcher == "srun"), "torchrun's agents ignore it"
        (run / "generations" / "000002.json").touch()
        assert started.signal(signal.SIGINT) is True
        wait_for(lambda: (tmp_path / "sent").exists() and len((tmp_path / "sent").read_text().splitlines()) == 2)
        assert sorted((tmp_path / "sent").read_text().splitlines()) == ["--signal=TERM 7.0", "--signal=USR1 7.0"]
    finally:
        monkeypatch.setattr(step, "LEAVE_S", 0.0)
        started.kill()
    assert (tmp_path / "env").read_text().strip() == ("1" if launcher == "torchrun" else "")


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


RANK = """
import signal, sys
numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
assert [signal.getsignal(n) for n in numbers] == [signal.SIG_DFL] * 3
from pretrain.signals import StopFlag
with StopFlag() as stop:
    print("ready", flush=True)
    while not stop:
        signal.pause()
print(stop.reason, flush=True)
signal.pause()
"""
TORCHRUN = """
import os, pathlib, subprocess, sys
child = subprocess.Popen(sys.argv[2:], env={**os.environ, "RANK": "3"}, start_new_session=True)
path = pathlib.Path(sys.argv[1], "pids")
path.with_suffix(".new").write_text(f"{os.getpid()} {child.pid}")
path.with_suffix(".new").rename(path)
sys.exit(child.wait() and 7)
"""


@pytest.fixture
def shielded(tmp_path):
    """A shield with a stand-in for torchrun and one rank, which has set its handlers: (shield, its output, pids)."""
    rank = [*SHIELD, "rank", str(tmp_path), sys.executable, "-c", RANK]
    started = subprocess.Popen([*SHIELD, "agent", sys.executable, "-c", TORCHRUN, str(tmp_path), *rank], cwd=ROOT)
    output = tmp_path / "rank-3.out"
    wait_for(lambda: output.exists() and "ready" in output.read_text() and (tmp_path / "pids").exists())
    yield started, output, [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    started.kill()
    started.wait()


def gone(pid):
    """Whether the process has ended, though its parent may not have been told yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_signal_to_the_shield_reaches_the_rank_and_not_the_agent_between_them(shielded):
    started, output, (torchrun, rank) = shielded
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(torchrun, number)  # as where Slurm signals everything that a task has started
    started.send_signal(signal.SIGUSR1)
    wait_for(lambda: output.read_text().splitlines() == ["ready", "SIGUSR1"])
    assert started.poll() is None and not gone(torchrun)
    os.kill(rank, signal.SIGKILL)
    assert started.wait(10) == 7, "torchrun's own code"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_all_die_with_the_shield(shielded):
    started, _, pids = shielded
    started.kill()
    wait_for(lambda: all(gone(pid) for pid in pids))


def test_stop_handlers_come_and_go_over_ignored_signals():
    code = (
        "import os, signal\nfrom pretrain.signals import StopFlag\n"
        "with StopFlag() as stop:\n    os.kill(os.getpid(), signal.SIGTERM)\n    assert stop.reason == 'SIGTERM'\n"
        "os.kill(os.getpid(), signal.SIGTERM)\nprint('lives')"
    )
    done = subprocess.run(
        [*SHIELD, "agent", sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "lives\n", done.stderr


@pytest.mark.parametrize("arguments", [[], ["agent"], ["rank", "/"], ["other", "true"], ["agent", "/no/such/program"]])
def test_what_cannot_be_started_is_one_sentence(arguments):
    env = {name: value for name, value in os.environ.items() if name != "RANK"}
    done = subprocess.run([*SHIELD, *arguments], cwd=ROOT, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_an_unknown_launcher_is_refused(tmp_path):

    assert config(tmp_path, launcher="torchrun").cluster.launcher == "torchrun"
    with pytest.raises(RunError, match="launcher"):
        config(tmp_path, launcher="mpirun")
