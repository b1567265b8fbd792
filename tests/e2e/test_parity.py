"""The loss curve does not depend on how the work is cut: ZeRO stage, ranks, micro-batches, recomputation."""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from cluster.local import LocalJob
from tests.e2e.runs import write_config

BASE = "model.dropout=0 train.steps=6 eval.every=0 optim.lr=1e-2 optim.schedule.warmup_steps=0"
TWO_RANKS = [
    *(f"{BASE} train.zero_stage={stage}" for stage in (0, 1, 2, 3)),
    f"{BASE} train.zero_stage=2 train.micro_batch=4",
    f"{BASE} train.zero_stage=0 train.micro_batch=1",
    f"{BASE} train.zero_stage=1 train.recompute.mode=full",
    f"{BASE} train.zero_stage=3 train.recompute.mode=full train.recompute.every=2",
    f"{BASE} train.zero_stage=2 train.recompute.mode=offload",
]
CPU_ADAM = f"{BASE} train.zero_stage=1 optim.implementation=deepspeed_cpu"
CAN_COMPILE = shutil.which("g++") is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


def measure(tmp_path, dataset, settings, ranks):
    config = write_config(tmp_path, dataset, tmp_path / "run")
    output = tmp_path / f"losses-{ranks}.json"
    command = [sys.executable, "-m", "tests.e2e.parity_worker", str(config), str(output), *settings]
    with LocalJob(command, ranks, tmp_path / "logs") as job:
        assert job.wait() == 0
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def curves(tiny_dataset, tmp_path_factory):
    """setting → [(loss, gradient norm)] of each step, on two ranks and on one."""
    folder = tmp_path_factory.mktemp("parity")
    two = measure(folder, tiny_dataset, TWO_RANKS, 2)
    one = measure(folder, tiny_dataset, [f"{BASE} train.zero_stage=1", *([CPU_ADAM] if CAN_COMPILE else [])], 1)
    return {**{f"2 ranks, {k}": v for k, v in two.items()}, **{f"1 rank, {k}": v for k, v in one.items()}}


def test_every_cut_gives_the_same_curve(curves):
    reference = curves[f"1 rank, {BASE} train.zero_stage=1"]
    assert len(reference) == 6
    assert reference[-1][0] < reference[0][0] - 0.05, "it learns, so equal curves mean something"
    for name, curve in curves.items():
        for step, ((loss, norm), (expected, expected_norm)) in enumerate(zip(curve, reference, strict=True)):
            tolerance = 1e-5 if "deepspeed_cpu" not in name else 1e-4  # another implementation of AdamW
            assert loss == pytest.approx(expected, rel=tolerance), f"{name}, step {step}"
            assert norm == pytest.approx(expected_norm, rel=1e-3), f"{name}, step {step}"


@pytest.mark.skipif(not CAN_COMPILE, reason="DeepSpeedCPUAdam compiles itself and needs g++ and Python's headers")
def test_deepspeeds_cpu_adam_was_among_them(curves):
    assert f"1 rank, {CPU_ADAM}" in curves
