"""The run directory: the one thing that the commands, the launcher and the run share."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain import config_file
from pretrain.config import RunConfig
from pretrain.errors import Busy, RunError
from pretrain.files import write_atomic

log = logging.getLogger(__name__)

TAKE_OVER = "PHA_TAKE_OVER"
"""The environment variable by which a supervisor says that whoever holds the run's lock is lost."""

# Changing one of these would make the run's past and its future two different experiments.
FROZEN = ("model", "train.seed", "train.objective", "train.init_from")
# These too, unless the user chooses to go on with the next epoch.
FROZEN_DATA = ("data.seq_len", "data.seed", "data.lanes", "data.packing", "data.mixture.weights")


@dataclass(frozen=True)
class RunDirectory:
    """The places inside a run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, every value included."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: training, validation and events."""
        return self.path / "metrics.jsonl"

    @property
    def quarantine(self) -> Path:
        """One JSON object a damaged block of data that was left out; absent if there was none."""
        return self.path / "quarantine.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """`rank-N.log` for each rank."""
        return self.path / "logs"

    @property
    def heartbeats(self) -> Path:
        """`rank-N.json` for each rank: where it is, and since when."""
        return self.path / "heartbeats"

    @property
    def generations(self) -> Path:
        """One file a start of the run; see `pretrain.fence`."""
        return self.path / "generations"

    @property
    def exits(self) -> Path:
        """Why each rank of each start left; see `pretrain.exits`."""
        return self.path / "exits"

    @property
    def stop(self) -> Path:
        """While a file of this name exists, the run saves and does not train."""
        return self.path / "STOP"

    @property
    def report(self) -> Path:
        """The page with the plots."""
        return self.path / "report.html"

    @property
    def sample(self) -> Path:
        """What the model wrote after its last step."""
        return self.path / "sample.json"

    def create(self) -> None:
        """Makes the folders. Raises RunError when the place cannot be written."""
        try:
            for folder in (self.path, self.checkpoints, self.logs, self.heartbeats):
                folder.mkdir(parents=True, exist_ok=True)
                probe = folder / ".writable"
                probe.touch()
                probe.unlink(missing_ok=True)  # another host may be trying too
        except OSError as error:
            raise RunError(
                f"Cannot write in the run directory ({error.filename}: {error.strerror}); "
                "give this user the right to write there, or set run_dir to another place."
            ) from None

    def forget_heartbeats(self) -> None:
        """Removes those of earlier starts, whose ranks may have been more."""
        for path in self.heartbeats.glob("rank-*.json"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, this process is the only one that runs this run (on file systems with flock).

        Raises Busy when another process does: two would overwrite each other's record and checkpoints. The
        kernel releases the lock when a process dies, however it dies. Who has seen to it that an earlier start is over
        or lost sets `TAKE_OVER`: what is left of it, on a node that is cut off, must not keep the run from going on,
        and is kept out by the fence.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if os.environ.get(TAKE_OVER):
                    log.warning("An earlier start of %s still lives somewhere; it can publish nothing more.", self.path)
                    yield
                    return
                raise Busy(
                    f"Another process is training the run {self.path}; wait until it has ended, or start a new run "
                    "with another run_dir."
                ) from None
            yield

    def lanes(self) -> int | None:
        """The lanes that the run was started with; None before its first start."""
        return self.read_config().data.lanes if self.config.is_file() else None

    def write(self, config: RunConfig) -> None:
        """Records the config that the run goes on with."""
        write_atomic(self.config, config_file.dump(config))

    def check(self, config: RunConfig, *, settled: bool = True) -> None:
        """Raises RunError that names a setting which must not change after the first start, and has.

        A config that is not `settled` leaves to the data what it does not say; that is not compared.
        """
        if self.config.exists():
            # Read with today's defaults: a run may be older than a setting.
            old = json.loads(self.read_config().model_dump_json())
            new = json.loads(config.model_dump_json())
            chosen = config.data.on_change == "next_epoch"
            for key in FROZEN if chosen else FROZEN + FROZEN_DATA:
                if changed := _difference(_get(old, key), _get(new, key), key, settled):
                    raise RunError(
                        f"The run {self.path} was started with other settings: {changed}; "
                        "restore the value, or start a new run with another run_dir."
                    )

    def read_config(self) -> RunConfig:
        """The run's resolved config. Raises RunError when this is no run directory."""
        if not self.config.is_file():
            raise RunError(f"{self.path} is not a run directory (no config.yaml in it); `pha train` makes one.")
        config = config_file.load(self.config)
        if config.model.architecture == "pha" and "in_projections:" not in self.config.read_text(encoding="utf-8"):
            # Older than the setting: its weights have the names of separate matrices.
            separate = config.model.model_copy(update={"in_projections": "separate"})
            return config.model_copy(update={"model": separate})
        return config


def config_hash(config: RunConfig) -> str:
    """SHA-256 over the parts that decide the weights: model, data, optimizer and training."""
    tree = json.loads(config.model_dump_json(include={"model", "data", "optim", "train"}))
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _get(tree: dict[str, Any], key: str) -> Any:
    node: Any = tree
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _difference(old: Any, new: Any, key: str, settled: bool) -> str:
    """The first leaf that differs, as `key: was 1, is 2`; empty when none does. None is no value unless settled."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            found = _difference(old.get(name), new.get(name), f"{key}.{name}", settled)
            if found:
                return found
        return ""
    return "" if old == new or (new is None and not settled) else f"{key} was {old!r} and is now {new!r}"
