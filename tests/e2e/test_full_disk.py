"""A disk that is really full: a run in a small tmpfs, which needs a mount namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import pytest

from tests.e2e.runs import CONFIG, ROOT, write_config
from tests.e2e.small_disk import FAILED

APART = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture(scope="module")
def found(tiny_dataset, tmp_path_factory):
    """What `small_disk` saw, by what became of the disk."""
    try:
        subprocess.run([*APART, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        warnings.warn(f"the full disk was NOT tested: no tmpfs can be mounted here ({error})", stacklevel=1)
        pytest.skip("no tmpfs can be mounted here")

    def play(how: str):
        folder = tmp_path_factory.mktemp(how)
        text = CONFIG.replace("steps: 14", "steps: 20").replace("every: 6", "every: 0").replace("keep: 2", "keep: 1")
        config = write_config(folder, tiny_dataset, folder / "run", text)
        played = subprocess.run(
            [*APART, sys.executable, "-m", "tests.e2e.small_disk", str(folder / "run"), str(config), how],
            capture_output=True, text=True, cwd=ROOT, timeout=300,
        )  # fmt: skip
        assert played.returncode == 0, played.stderr
        return json.loads(played.stdout)

    return {how: play(how) for how in ("freed", "full")}


def test_a_disk_that_is_full_for_a_while_costs_checkpoints_and_no_record(found):
    seen = found["freed"]
    assert seen["codes"] == [0], seen["words"]
    assert seen["steps"] == list(range(1, 21)), "records wait until the disk takes them"
    assert seen["checkpoints"] == [20] and seen["damaged"] == []
    assert seen["failed"] and all(FAILED in problem for problem in seen["failed"])


def test_a_disk_that_stays_full_ends_the_run_with_a_sentence_and_keeps_what_there_was(found):
    seen = found["full"]
    assert seen["codes"] == [1, 0], seen["words"]
    assert "free some space" in seen["words"] and "Traceback" not in seen["words"]
    assert seen["steps"] == list(range(1, 21)) and seen["damaged"] == []
    assert seen["weights"] == found["freed"]["weights"], "what was trained does not depend on the disk"
