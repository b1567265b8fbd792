"""A process killed while it compiled must not stop those that come after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.extensions import FOLDER, compiling

HOLD = """
import time
from pretrain.extensions import compiling
with compiling() as folder:
    (folder / "cpu_adam").mkdir()
    (folder / "cpu_adam" / "lock").touch()
    print("held", flush=True)
    time.sleep(600)
"""
ASK = """
from pretrain.extensions import compiling
print("asks", flush=True)
with compiling() as folder:
    print("lock there" if (folder / "cpu_adam" / "lock").exists() else "free", flush=True)
"""


def start(program: str, folder: Path) -> subprocess.Popen[str]:
    env = {**os.environ, FOLDER: str(folder)}
    return subprocess.Popen([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, text=True)


def test_the_lock_of_a_killed_build_goes_with_it_and_that_of_a_living_one_does_not(tmp_path: Path) -> None:
    with start(HOLD, tmp_path) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            with start(ASK, tmp_path) as waiter:  # only now: the other one holds the lock
                assert waiter.stdout is not None and waiter.stdout.readline() == "asks\n"
                with pytest.raises(subprocess.TimeoutExpired):
                    waiter.wait(1)
                holder.send_signal(signal.SIGKILL)
                assert waiter.stdout.readline() == "free\n"
                assert waiter.wait(60) == 0
        finally:
            holder.kill()


@pytest.mark.parametrize("given", [True, False])
def test_the_environment_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if given:
        monkeypatch.setenv(FOLDER, str(tmp_path / "mine"))
    else:
        monkeypatch.delenv(FOLDER, raising=False)
    before = dict(os.environ)
    with pytest.raises(RuntimeError), compiling() as folder:
        assert folder.is_relative_to(tmp_path / "mine" if given else tmp_path / ".cache")
        assert os.environ[FOLDER] == str(folder)
        raise RuntimeError("the compiler failed")
    assert dict(os.environ) == before
