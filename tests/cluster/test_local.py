from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.local import LocalJob, Place


def job(tmp_path, code, ranks=2):
    return LocalJob(
        [sys.executable, "-c", f"import os, sys, time\nrank = int(os.environ['RANK'])\n{code}"],
        ranks,
        tmp_path,
    )


def test_each_rank_is_told_its_place(tmp_path):
    code = (
        "names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')\n"
        f"open(os.path.join({str(tmp_path)!r}, f'place-{{rank}}'), 'w').write(' '.join(os.environ[n] for n in names))"
    )
    assert job(tmp_path, code, ranks=3).wait() == 0
    places = [(tmp_path / f"place-{r}").read_text().split() for r in range(3)]
    assert [p[:3] for p in places] == [["0", "0", "3"], ["1", "1", "3"], ["2", "2", "3"]]
    assert len({tuple(p[3:]) for p in places}) == 1


def test_ranks_of_one_machine_among_several_are_told_theirs(tmp_path, capfd):
    code = (
        "names = ('LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'MORE')\n"
        "print(*(os.environ[n] for n in names))\nsys.exit(3 * (rank == 5))"
    )
    command = [sys.executable, "-c", f"import os, sys\nrank = int(os.environ['RANK'])\n{code}"]
    place = Place(4, 8, "10.0.0.1", 29500, {"MORE": "yes"})
    assert LocalJob(command, 2, tmp_path, place).wait() == 3
    assert (tmp_path / "rank-5.out").read_text() == "1 2 8 10.0.0.1 29500 yes\n"
    assert not list(tmp_path.glob("rank-[01].out")) and "rank 5: 1 2 8" in capfd.readouterr().err


def test_a_failed_rank_ends_the_others_and_says_its_last_words(tmp_path, capfd):
    started = time.monotonic()
    code = job(tmp_path, "if rank: print('the shard is gone'); sys.exit(2)\ntime.sleep(60)").wait()
    assert code == 2
    assert time.monotonic() - started < 30
    assert "rank 1: the shard is gone" in capfd.readouterr().err


def test_ranks_that_stop_on_request_are_waited_for(tmp_path):
    code = f"""
import pathlib, signal
folder = pathlib.Path({str(tmp_path)!r})
def leave(*_):
    time.sleep(1 + rank)
    (folder / f'saved-{{rank}}').touch()
    sys.exit(75)
signal.signal(signal.SIGUSR1, leave)
(folder / f'ready-{{rank}}').touch()
time.sleep(60)
"""
    running = job(tmp_path, code)
    _wait_for(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
    running.signal(signal.SIGUSR1)
    assert running.wait() == 75
    assert len(list(tmp_path.glob("saved-*"))) == 2


def test_a_killed_rank_is_seen(tmp_path):
    running = job(tmp_path, "if rank: os.kill(os.getpid(), 9)\ntime.sleep(60)")
    assert running.wait() == 128 + 9


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_ranks_die_with_their_launcher(tmp_path):
    root = Path(__file__).resolve().parents[2]
    rank = f"""
import os, pathlib, time
pathlib.Path({str(tmp_path)!r}, 'pid-' + os.environ['RANK']).write_text(str(os.getpid()))
time.sleep(60)
"""
    script = f"""
import pathlib, sys
from cluster.local import LocalJob, Place
LocalJob([sys.executable, '-c', {rank!r}], 2, pathlib.Path({str(tmp_path)!r})).wait()
"""
    launcher = subprocess.Popen([sys.executable, "-c", script], cwd=root)
    _wait_for(lambda: all((tmp_path / f"pid-{r}").exists() and (tmp_path / f"pid-{r}").read_text() for r in (0, 1)))
    launcher.kill()
    launcher.wait()
    pids = [int((tmp_path / f"pid-{r}").read_text()) for r in (0, 1)]
    _wait_for(lambda: not any(_alive(pid) for pid in pids))


def test_no_rank_is_refused(tmp_path):
    with pytest.raises(ClusterError, match="at least one rank"):
        job(tmp_path, "", ranks=0)
    with pytest.raises(ClusterError, match="Rank 0 could not be started"):
        LocalJob([str(tmp_path / "no-such-program")], 1, tmp_path)


def _alive(pid):
    """Whether the process runs; one that has died but was not collected yet does not count."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def _wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
