from __future__ import annotations

import platform
import subprocess
import sys

import numpy as np
import pytest

from pretrain.hardware import peak_flops, peak_memory, usable_cores


def test_peak_memory_rises_by_what_is_touched_and_stays():
    before = peak_memory()
    assert before > 10e6
    held = np.ones(max(before, 1) // 8 + 8 * 1024 * 1024)  # more than all that was ever held
    after = peak_memory()
    assert after > 0.99 * held.nbytes  # the kernel counts pages of each core in batches
    del held
    assert peak_memory() > 0.99 * after


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_freed_memory_is_kept_for_the_next_step():
    program = """
import resource, sys, numpy as np
from pretrain.hardware import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(8 * 1024 * 1024).sum()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "default")
    )
    assert kept < 100 < given_back


def test_a_cpu_has_cores_and_a_measured_peak():
    import torch

    assert usable_cores() >= 1
    assert peak_flops(torch.device("cpu")) > 1e8
