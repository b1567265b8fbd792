from __future__ import annotations

import numpy as np

from pretrain.hardware import peak_flops, peak_memory, usable_cores


def test_peak_memory_rises_by_what_is_touched_and_stays():
    before = peak_memory()
    assert before > 10e6
    held = np.ones(max(before, 1) // 8 + 8 * 1024 * 1024)  # more than all that was ever held
    after = peak_memory()
    assert after > 0.99 * held.nbytes  # the kernel counts pages of each core in batches
    del held
    assert peak_memory() > 0.99 * after


def test_a_cpu_has_cores_and_a_measured_peak():
    import torch

    assert usable_cores() >= 1
    assert peak_flops(torch.device("cpu")) > 1e8
