"""Taipan's budget loss does not depend on how the work is cut, and its shares are recorded."""

from __future__ import annotations

import pytest

from pretrain import metrics
from tests.e2e.runs import CONFIG, pha, write_config
from tests.e2e.test_parity import measure

OPEN = "model.architecture=taipan model.taipan.every=1 model.taipan.window=8 model.taipan.noise=false"
BASE = (
    f"{OPEN} model.taipan.budget=0.5 model.taipan.budget_warmup=3 model.dropout=0 train.steps=5 eval.every=0 "
    "optim.lr=1e-2 optim.schedule.warmup_steps=0"
)


def test_every_cut_gives_the_same_curve(tiny_dataset, tmp_path):
    cuts = [
        f"{BASE} train.zero_stage=2 train.micro_batch=4",
        f"{BASE} train.zero_stage=3 train.micro_batch=2 train.recompute.mode=full",
    ]
    curves = measure(tmp_path, tiny_dataset, cuts, 2)
    (reference,) = measure(tmp_path, tiny_dataset, [f"{BASE} train.zero_stage=1 train.micro_batch=1"], 1).values()
    assert reference[-1][0] < reference[0][0] - 0.05
    for name, curve in curves.items():
        for (loss, norm), (expected, expected_norm) in zip(curve, reference, strict=True):
            assert loss == pytest.approx(expected, rel=1e-5), name
            assert norm == pytest.approx(expected_norm, rel=1e-3), name


def test_a_run_records_which_share_attends(tiny_dataset, tmp_path):
    text = CONFIG.replace("pha-nano", "taipan-nano").replace("zero_stage: 2", "zero_stage: 1")
    text = text.replace("steps: 14", "steps: 4").replace("every: 6", "every: 2")
    assert pha("train", write_config(tmp_path, tiny_dataset, tmp_path / "run", text)).returncode == 0
    records = metrics.read(tmp_path / "run" / "metrics.jsonl")
    training, validation = metrics.of_kind(records, "train"), metrics.of_kind(records, "validation")
    assert len(training) == 4 and all(len(r["selected"]) == 1 and 0.05 < r["selected"][0] < 0.3 for r in training)
    assert len(validation) == 2 and all(len(r["selected"]) == 1 for r in validation)
