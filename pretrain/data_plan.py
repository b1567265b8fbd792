"""From a run's configuration to the order of its data: schedules over steps become schedules over sequences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_pipeline.corpus import Corpus
from data_pipeline.stream import Stream
from pretrain.config import RunConfig, changes
from pretrain.errors import RunError
from pretrain.evaluate import Evaluation, mix
from pretrain.state import CheckpointInfo, DataState, TrainState

#: A setting's text beyond this is kept as a hash, so that the state in a checkpoint stays under 1 KiB.
_SHOWN = 40


def stream(config: RunConfig, corpus: Corpus, state: DataState) -> Stream:
    """What the run trains on, in its order. Raises DataError."""
    mixture = config.data.mixture
    weights = [(entry.from_step, entry.weights) for entry in mixture.weights] if mixture else []
    return Stream(
        corpus.splits("train"),
        seq_len=_by_sequence(config, state, changes(config.data.seq_len)),
        lanes=config.lanes,
        seed=config.data.seed,
        packing=config.data.packing,
        weights=_by_sequence(config, state, weights),
        first_epoch=state.first_epoch,
        origin=state.first_sequence,
    )


def sequences_before(config: RunConfig, step: int, first_step: int = 0) -> int:
    """Sequences that the steps [first_step, step) read; 0 if there are none."""
    bounds = [*(first for first, _ in config.batches), max(step, config.batches[-1][0])]
    spans = zip(pairwise(bounds), (size for _, size in config.batches), strict=True)
    return sum(max(0, min(last, step) - max(first, first_step)) * size for (first, last), size in spans)


def identity(config: RunConfig, corpus: Corpus) -> dict[str, str]:
    """Setting → value of all that decides which tokens a sequence number stands for."""
    data, mixture = config.data, config.data.mixture
    values: dict[str, Any] = {
        "data.seq_len": changes(data.seq_len),
        "data.seed": data.seed,
        "data.lanes": config.lanes,
        "data.packing": data.packing,
    }
    if mixture is not None:
        values["data.mixture.weights"] = [entry.model_dump() for entry in mixture.weights]
    if len(changes(data.seq_len)) > 1 or (mixture is not None and len(mixture.weights) > 1):
        values["train.global_batch"] = config.batches  # it decides the sequence at which a step's change falls
    return {"dataset": corpus.hash, **{key: _short(value) for key, value in values.items()}}


def difference(config: RunConfig, corpus: Corpus, info: CheckpointInfo) -> str:
    """What is not as it was when the checkpoint was written, in words; empty if nothing is."""
    old, new = info.state.data.made_with or {"dataset": info.dataset_hash}, identity(config, corpus)
    if old["dataset"] != new["dataset"]:
        return f"{', '.join(str(path) for path in config.data.paths.values())} has other text"
    for key in sorted(old if len(old) == 1 else old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            return f"{key} was {old.get(key, 'without a schedule')} and is now {new.get(key, 'without a schedule')}"
    return ""


def check_unchanged(config: RunConfig, corpus: Corpus, path: Path, info: CheckpointInfo) -> None:
    """Raises RunError if the data is not what the checkpoint was trained on, unless the user accepts a new epoch."""
    if info.tokenizer_hash != corpus.tokenizer_hash:
        raise RunError(
            f"The dataset {corpus.path} has another tokenizer than the one {path} was "
            "trained on; restore that dataset, or start a new run with another run_dir."
        )
    found = difference(config, corpus, info)
    if found and config.data.on_change == "refuse":
        raise RunError(
            f"The data is not what {path} was trained on: {found}; restore it, start a new run with another run_dir, "
            "or set data.on_change=next_epoch to go on with the next epoch."
        )


def next_epoch(config: RunConfig, corpus: Corpus, state: TrainState) -> DataState:
    """The state of an order that begins at this step with an epoch that has not been read in part.

    How far the old data was read is told by its own number of tokens, which may be gone; so epochs are counted by the
    old order's first epoch plus the sequences read since, which no order can exceed.
    """
    old = state.data
    return DataState(
        made_with=identity(config, corpus),
        first_step=state.step,
        first_sequence=state.sequences,
        first_epoch=old.first_epoch + state.sequences - old.first_sequence + 1,
    )


def combine(config: RunConfig, name: str, parts: Mapping[str, Evaluation]) -> Evaluation:
    """One dataset's evaluation itself; a mixture's with its last weights, so that all steps can be compared."""
    mixture = config.data.mixture
    return mix(name, parts, mixture.weights[-1].weights) if mixture else next(iter(parts.values()))


def _by_sequence(config: RunConfig, state: DataState, entries: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """(first step, value) → (first sequence since the order began, value); of those before it, only the last.

    After a rollback the same steps come once more, with later sequences, and so do the changes that fall on them.
    """
    starts = [(state.first_sequence, state.first_step), *state.returns]
    found: list[tuple[int, Any]] = []
    for begin, first_step in starts:
        found = [entry for entry in found if entry[0] < begin - state.first_sequence]  # the rollback came before these
        own = {sequences_before(config, step, first_step): value for step, value in entries}
        for after, value in sorted(own.items(), key=lambda entry: entry[0]):
            if after or not found or found[-1][1] != value:
                found.append((begin - state.first_sequence + after, value))
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= _SHOWN else "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]
