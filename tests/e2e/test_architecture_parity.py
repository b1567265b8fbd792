"""Every architecture learns the same under every way of sharding: no module hides a parameter from the engine."""

from __future__ import annotations

import json
import sys

import pytest

from cluster.local import LocalJob
from tests.e2e.runs import write_config

BASE = "model.dropout=0 train.steps=3 eval.every=0 optim.lr=1e-2 optim.schedule.warmup_steps=0"
MODELS = {
    "transformer": "model.preset=transformer-nano",
    "mamba2": "model.preset=mamba2-nano",
    "sequential": "model.composition=sequential model.gss.kind=ssd model.ssd.head_dim=16 model.ssd.state=16",
    "mehta": "model.gss.kind=mehta model.mehta.state=16 model.mixing=per_channel",
    "gss-hybrid": "model.preset=gss-hybrid-nano",
    "h3": "model.preset=h3-hybrid-nano",
    "hedgehog": "model.preset=hedgehog-nano",
    "gate": "model.mixing=token_gate model.attention.window=8",
}
CUTS = ["train.zero_stage=0", "train.zero_stage=2", "train.zero_stage=3 train.recompute.mode=full"]


@pytest.fixture(scope="module")
def curves(tiny_dataset, tmp_path_factory):
    """(model, cut) → [(loss, gradient norm)] of each step, on two ranks."""
    folder = tmp_path_factory.mktemp("architectures")
    config = write_config(folder, tiny_dataset, folder / "run")
    output = folder / "losses.json"
    settings = {(name, cut): f"{BASE} {model} {cut}" for name, model in MODELS.items() for cut in CUTS}
    command = [sys.executable, "-m", "tests.e2e.parity_worker", str(config), str(output), *settings.values()]
    with LocalJob(command, 2, folder / "logs") as job:
        assert job.wait() == 0
    results = json.loads(output.read_text())
    return {key: results[setting] for key, setting in settings.items()}


@pytest.mark.parametrize("name", MODELS)
def test_sharding_and_recomputation_change_no_curve(curves, name):
    reference = curves[name, CUTS[0]]
    assert reference[-1][0] < reference[0][0] - 0.05, "it learns, so equal curves mean something"
    for cut in CUTS[1:]:
        for (loss, norm), (expected, expected_norm) in zip(curves[name, cut], reference, strict=True):
            assert loss == pytest.approx(expected, rel=1e-5), cut
            assert norm == pytest.approx(expected_norm, rel=1e-3), cut
