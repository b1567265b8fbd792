"""DeepSpeed's JSON, generated from ours. The user writes no DeepSpeed config; a clash is an error."""

from __future__ import annotations

from typing import Any

from pretrain.config import RunConfig
from pretrain.errors import RunError


def deepspeed_config(config: RunConfig, world_size: int, *, bf16: bool, device: str) -> dict[str, Any]:
    """DeepSpeed's settings for this run on `world_size` ranks of `device` ("cpu" or "cuda").

    Raises RunError when the batch does not divide, or when `deepspeed:` sets a key that is ours.
    """
    micro, _ = batch_split(config, world_size)
    stage = zero_stage(config, world_size)
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro,
        # The loop owns accumulation: it calls backward as often as it likes, then step once. DeepSpeed's own
        # count would also divide the loss, which is already divided by the global number of tokens.
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # Stage 0 leaves the norm unreported; the engine clips and measures it itself there.
        "gradient_clipping": config.optim.clip if stage else 0.0,
        "zero_optimization": {
            "stage": stage,
            # Refused by DeepSpeed with unmanaged accumulation at stage 1; the CPU backend has no streams.
            "overlap_comm": False,
            "stage3_gather_16bit_weights_on_model_save": False,
        },
        # On a CPU the host's memory is the device's: nothing to offload (and DeepSpeed's copy would be lost).
        "activation_checkpointing": {"cpu_checkpointing": config.train.recompute.mode == "offload" and device != "cpu"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "checkpoint": {"tag_validation": "Fail"},
    }
    if bf16:
        # Autocast over fp32 weights: state-space parameters and the optimizer never see bf16.
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    settings["train_batch_size"] = micro * world_size
    return _extend(settings, config.deepspeed, "")


def zero_stage(config: RunConfig, world_size: int) -> int:
    """The ZeRO stage that a run of so many ranks computes with: `train.zero_stage`, and 0 on one rank.

    One rank's part is the whole, and dividing it costs a tenth of the step (docs/notebook.md). Who sets keys of
    `deepspeed.zero_optimization` (offloading, for example) keeps the stage.
    """
    return 0 if world_size == 1 and "zero_optimization" not in config.deepspeed else config.train.zero_stage


def batch_split(config: RunConfig, world_size: int) -> tuple[int, int]:
    """Sequences per forward pass of a rank, and forward passes per step, of the largest global batch.

    Raises RunError if a batch does not divide.
    """
    sizes = [size for _, size in config.batches]
    for total in sizes:
        if total % world_size:
            raise RunError(
                f"train.global_batch ({total}) must be a multiple of the number of ranks ({world_size}); "
                "change one of them."
            )
        share = total // world_size
        if share % (config.train.micro_batch or share):
            raise RunError(
                f"A rank's share of the batch ({total} / {world_size} = {share}) must be a multiple of "
                f"train.micro_batch ({config.train.micro_batch}); change one of them."
            )
    share = max(sizes) // world_size
    micro = config.train.micro_batch or share
    return micro, share // micro


def _extend(ours: dict[str, Any], theirs: dict[str, Any], prefix: str) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in theirs.items():
        if isinstance(value, dict) and isinstance(ours.get(key, {}), dict):
            merged[key] = _extend(ours.get(key, {}), value, f"{prefix}{key}.")
        elif key in ours:
            raise RunError(
                f"The key deepspeed.{prefix}{key} is generated from the run's own settings "
                f"(here: {ours[key]!r}); remove it and set train, optim or checkpoint instead."
            )
        else:
            merged[key] = value
    return merged
