"""Phases of a start."""

from __future__ import annotations

import subprocess
import sys

from pretrain.startup import Startup


def test_phases_follow_each_other_and_the_last_is_told_once():
    startup = Startup()
    startup.mark("imports")
    assert startup.ends("first step") and not startup.ends("first step")
    assert list(startup.seconds) == ["imports", "first step"]
    assert all(seconds >= 0 for seconds in startup.seconds.values())


def test_the_first_phase_began_with_the_process():
    code = "import time; time.sleep(0.5); from pretrain.startup import Startup; s = Startup(); s.mark('a')"
    code += "; print(s.seconds)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    if sys.platform == "linux":
        assert 0.4 < float(printed.split(":")[1].strip(" }\n")) < 60
