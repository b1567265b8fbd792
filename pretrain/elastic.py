"""A checkpoint taken up by another number of ranks, or under another ZeRO stage.

The weights of a checkpoint lie in one file that belongs to no rank, `model.safetensors`. The optimizer's state lies in
DeepSpeed's files as its ranks divided it. DeepSpeed's universal conversion puts it together by parameter; what it gives
is checked against the weights, which it must give too, and kept beside the checkpoint as `optimizer.safetensors`. Each
rank then takes its part of it. DeepSpeed's own way of loading a universal checkpoint is not used: in 0.19.8 it refuses
to go from stage 1 or 2 to stage 3.

DeepSpeed's files are pickles. They are read only after `Checkpoint.problems` has found every byte of them as this run
wrote it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pretrain.checkpoint import Checkpoint, CheckpointStore
from pretrain.errors import RunFailed

OPTIMIZER = "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
_STEP = "step"


def whole_optimizer(
    store: CheckpointStore, checkpoint: Checkpoint, zero_files: Path, zero_stage: int, names: list[str]
) -> Path:
    """The checkpoint's optimizer state in one file that belongs to no rank: made once, and verified at every use.

    Args:
        store: of the run.
        checkpoint: verified.
        zero_files: DeepSpeed's folder in it.
        zero_stage: with which it was written.
        names: of the parameters, in the order in which the optimizer has them.

    Raises:
        RunFailed: it cannot be put together; the checkpoint itself is as it was.
    """
    kept = store.elastic(checkpoint)
    if kept is None:
        folder = store.begin_elastic(checkpoint)
        try:
            save_file(_collect(checkpoint, zero_files, zero_stage, names, folder / "universal"), folder / OPTIMIZER)
            shutil.rmtree(folder / "universal", ignore_errors=True)
            kept = store.commit_elastic(checkpoint)
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise RunFailed(
                f"The optimizer's state of {checkpoint.path} could not be put together for other ranks "
                f"({' '.join(str(error).split())[:300] or type(error).__name__}); the checkpoint is as it was: start "
                "the run with the number of ranks and the ZeRO stage that it was written with."
            ) from error
    return kept / OPTIMIZER


def _collect(
    checkpoint: Checkpoint, zero_files: Path, zero_stage: int, names: list[str], universal: Path
) -> dict[str, Tensor]:
    """Both moments of each parameter, as `name.exp_avg` and `name.exp_avg_sq`, and the optimizer's step."""
    if zero_stage == 0:
        return _from_one_rank(zero_files, names)
    from deepspeed.checkpoint import ds_to_universal

    options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
    arguments = argparse.Namespace(
        input_folder=str(zero_files), output_folder=str(universal), inject_missing_state=False, **options
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        ds_to_universal.main(arguments)
    (universal.parent / "latest_universal").unlink(missing_ok=True)
    found: dict[str, Tensor] = {}
    with safe_open(checkpoint.weights, framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118  # not a mapping
            atoms = {state: _atom(universal / "zero" / name / f"{state}.pt") for state in ("fp32", *MOMENTS)}
            expected = weights.get_tensor(name)
            if not torch.equal(atoms["fp32"].view_as(expected), expected):
                raise ValueError(f"the conversion gives other weights of {name} than {checkpoint.weights.name}")
            for moment in MOMENTS:
                found[f"{name}.{moment}"] = atoms[moment].view_as(expected).contiguous()
    found[_STEP] = torch.tensor(float(_step_of(universal / "zero")))
    return found


def _atom(path: Path) -> Tensor:
    atom: Any = torch.load(path, map_location="cpu", weights_only=True)
    tensor: Tensor = atom["param"] if isinstance(atom, dict) else atom
    return tensor


def _step_of(folder: Path) -> float:
    """The optimizer's step: beside each parameter (ZeRO 1 and 2), or in the state of a rank (ZeRO 3)."""
    for path in folder.rglob("step.pt"):
        return float(torch.load(path, map_location="cpu", weights_only=True))
    state: Any = torch.load(folder / "optimizer_state.pt", map_location="cpu", weights_only=False)  # we made it above
    groups = state["optimizer_state_dict"]["state"]
    return float(next(iter(groups.values()))[_STEP])


def _from_one_rank(zero_files: Path, names: list[str]) -> dict[str, Tensor]:
    """Without ZeRO every rank has the whole optimizer, and rank 0's is in the file of the model."""
    path = zero_files / "mp_rank_00_model_states.pt"
    saved: Any = torch.load(path, map_location="cpu", weights_only=False)  # verified, see above
    states = saved["optimizer"]["state"]
    for i, name in enumerate(names):
        if states[i][MOMENTS[0]].shape != saved["module"][name].shape:
            raise ValueError(f"the optimizer's state number {i} has not the shape of {name}")
    found = {f"{name}.{moment}": states[i][moment].contiguous() for i, name in enumerate(names) for moment in MOMENTS}
    return {**found, _STEP: torch.tensor(float(states[0][_STEP]))}


def give_optimizer(file: Path, parameters: dict[str, nn.Parameter], optimizer: Any, stage: int) -> None:
    """Lays each rank's part of the state into DeepSpeed's optimizer, before its first step.

    Args:
        file: of `whole_optimizer`.
        parameters: the trained module's, by name.
        optimizer: of the engine: torch's own at stage 0, and DeepSpeed's around it otherwise.
        stage: of ZeRO.
    """
    give: Callable[[Any, str, nn.Parameter, Callable[[str], Tensor]], None] = (_give_0, _give_12, _give_12, _give_3)[
        stage
    ]
    inner = optimizer if stage == 0 else optimizer.optimizer
    with safe_open(file, framework="pt") as state:
        step = state.get_tensor(_STEP)
        flats = list(parameters.values()) if stage == 0 else _flat_partitions(optimizer, stage)
        for flat in flats:
            empty = {moment: torch.zeros_like(flat, memory_format=torch.preserve_format) for moment in MOMENTS}
            inner.state[flat] = {_STEP: step.clone().to(flat.device), **empty}
        for name, parameter in parameters.items():
            if parameter.requires_grad:
                give(optimizer, name, parameter, state.get_tensor)


def _flat_partitions(optimizer: Any, stage: int) -> list[Tensor]:
    found: list[Tensor] = (
        optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
    )
    return found


def _give_0(optimizer: Any, name: str, parameter: nn.Parameter, read: Callable[[str], Tensor]) -> None:
    for moment in MOMENTS:
        optimizer.state[parameter][moment].copy_(read(f"{name}.{moment}"))


def _give_12(optimizer: Any, name: str, parameter: Any, read: Callable[[str], Tensor]) -> None:
    """A rank's part of a group is one piece of its parameters laid end to end; of a parameter it may be none."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return
    source, target = mapping.lp_fragment_address, mapping.hp_fragment_address
    flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    for moment in MOMENTS:
        piece = read(f"{name}.{moment}").flatten().narrow(0, source.start, source.numel)
        optimizer.optimizer.state[flat][moment].narrow(0, target.start, target.numel).copy_(piece)


def _give_3(optimizer: Any, name: str, parameter: Any, read: Callable[[str], Tensor]) -> None:
    """Each parameter is cut into equal parts, the last filled up; a rank's parts lie in groups."""
    group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    flat = optimizer.fp32_partitioned_groups_flat[group]
    begin = optimizer._get_param_partition_rank(parameter) * size
    for moment in MOMENTS:
        whole = read(f"{name}.{moment}").flatten()
        piece = whole[begin : begin + size]  # shorter, or empty, where the last part is filled up
        optimizer.optimizer.state[flat][moment].narrow(0, offset, len(piece)).copy_(piece)
