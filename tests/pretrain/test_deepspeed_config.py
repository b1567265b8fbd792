from __future__ import annotations

import pytest

from pretrain import config_file
from pretrain.deepspeed_config import batch_split, deepspeed_config, zero_stage
from pretrain.errors import RunError


def run(**tree):
    return config_file.parse({"run_dir": "r", "model": {"preset": "pha-nano"}, "data": {"path": "d"}, **tree}, "test")


def made(config, ranks=1, bf16=False, device="cpu"):
    return deepspeed_config(config, ranks, bf16=bf16, device=device)


def test_batches_are_split_exactly():
    config = run(train={"global_batch": 24, "micro_batch": 3})
    assert batch_split(config, 4) == (3, 2)
    assert batch_split(run(train={"global_batch": 24}), 4) == (6, 1)
    assert made(config, ranks=4)["train_batch_size"] == 12


def test_what_does_not_divide_is_one_sentence():
    with pytest.raises(RunError, match=r"global_batch \(24\) must be a multiple of the number of ranks \(5\)"):
        batch_split(run(train={"global_batch": 24}), 5)
    with pytest.raises(RunError, match=r"24 / 4 = 6\) must be a multiple of train.micro_batch \(4\)"):
        batch_split(run(train={"global_batch": 24, "micro_batch": 4}), 4)


def test_further_keys_pass_and_clashes_are_refused():
    extra = run(deepspeed={"zero_optimization": {"reduce_bucket_size": 1000}, "comms_logger": {"enabled": True}})
    settings = made(extra, bf16=True)
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1000
    assert settings["zero_optimization"]["stage"] == 1
    assert settings["comms_logger"] == {"enabled": True}
    assert settings["torch_autocast"]["enabled"]
    clash = run(deepspeed={"zero_optimization": {"stage": 3}})
    with pytest.raises(RunError, match=r"deepspeed\.zero_optimization\.stage is generated"):
        made(clash)


def test_offload_is_for_devices_that_have_their_own_memory():
    config = run(train={"recompute": {"mode": "offload"}})
    assert made(config, device="cuda")["activation_checkpointing"] == {"cpu_checkpointing": True}
    assert made(config, device="cpu")["activation_checkpointing"] == {"cpu_checkpointing": False}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_one_rank_divides_nothing_unless_deepspeed_is_told_how(stage):
    config = run(train={"zero_stage": stage})
    assert [zero_stage(config, ranks) for ranks in (1, 2, 8)] == [0, stage, stage]
    told = run(train={"zero_stage": stage}, deepspeed={"zero_optimization": {"offload_optimizer": {"device": "cpu"}}})
    assert zero_stage(told, 1) == stage
