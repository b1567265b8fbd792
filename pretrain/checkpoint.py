"""Checkpoints that cannot lie: complete, hashed, marked last, renamed; and found again by our own code.

A checkpoint is written to a hidden folder. Then come `manifest.json` (size and SHA-256 of every file), the
marker `COMMITTED` (the manifest's own hash) and the rename. Whatever dies before the rename leaves nothing
that could be taken for a checkpoint; whatever happens to the disk later is seen when the hashes are checked.
DeepSpeed's `latest` file is never written nor read: it is published before all ranks have finished.
"""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pretrain.config import CheckpointConfig
from pretrain.errors import RunError, RunFailed
from pretrain.fence import Fence
from pretrain.files import sha256, sync, write_atomic, write_json
from pretrain.retention import kept
from pretrain.state import CheckpointInfo

log = logging.getLogger(__name__)

MANIFEST, MARKER, STATE, WEIGHTS = "manifest.json", "COMMITTED", "state.json", "model.safetensors"
SOURCE = "source"
"""Beside what was made from a checkpoint: the marker of that checkpoint."""
_NAME = re.compile(r"step-(\d{8})")


class _Entry(BaseModel):
    """A file in the manifest."""

    model_config = ConfigDict(extra="forbid", strict=True)

    bytes: int
    sha256: str


_MANIFEST = TypeAdapter(dict[str, _Entry])


@dataclass(frozen=True)
class Checkpoint:
    """A folder that holds a committed checkpoint."""

    path: Path

    @property
    def step(self) -> int:
        """Optimizer steps done when it was written."""
        return step_of(self.path)

    @property
    def weights(self) -> Path:
        """The model alone, fp32, in safetensors."""
        return self.path / WEIGHTS

    def info(self) -> CheckpointInfo:
        """What it was made with. Raises RunError if the file is damaged."""
        try:
            return CheckpointInfo.model_validate_json((self.path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise RunError(f"The checkpoint {self.path} has no readable {STATE} ({error}).") from None

    def problems(self) -> list[str]:
        """Everything that is wrong with its files; empty when each byte is as it was written."""
        manifest, marker = self.path / MANIFEST, self.path / MARKER
        if not marker.is_file() or not manifest.is_file():
            return ["it was never completed"]
        try:
            if sha256(manifest).encode() != marker.read_bytes().strip():
                return [f"{MANIFEST} is not the one that was committed"]
            entries = _MANIFEST.validate_json(manifest.read_bytes())
            return self._file_problems(entries) if entries else [f"{MANIFEST} names no file"]
        except ValidationError:
            return [f"{MANIFEST} is none"]
        except OSError as error:
            return [f"it cannot be read ({error.strerror})"]

    def _file_problems(self, manifest: dict[str, _Entry]) -> list[str]:
        found = []
        for name, entry in manifest.items():
            file = self.path / name
            if ".." in file.parts or not file.is_relative_to(self.path):
                found.append(f"{name} is not a place in it")
            elif not file.is_file():
                found.append(f"{name} is missing")
            elif file.stat().st_size != entry.bytes:
                found.append(f"{name} has {file.stat().st_size} bytes instead of {entry.bytes}")
            elif sha256(file) != entry.sha256:
                found.append(f"{name} has another SHA-256 than when it was written")
        return found


class CheckpointStore:
    """The checkpoints of one run. Rank 0 finds, begins and commits; the others learn the outcome by agreement."""

    def __init__(self, directory: Path, rules: CheckpointConfig | None = None, fence: Fence | None = None) -> None:
        """Without rules all are kept; without a fence no two starts of the run may commit at once."""
        self.directory, self.rules, self.fence = directory, rules, fence

    def all(self) -> list[Checkpoint]:
        """Folders named as checkpoints, oldest first, verified or not."""
        folders = [p for p in self.directory.glob("step-*") if _NAME.fullmatch(p.name) and p.is_dir()]
        return [Checkpoint(p) for p in sorted(folders)]

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; None when there has never been one.

        Damaged ones that are newer are named, skipped and kept under another name. Raises RunError when every
        checkpoint is damaged: to start from nothing then is a decision for a person.
        """
        self._mend_exchange()
        damaged: list[tuple[Checkpoint, str]] = []
        for checkpoint in reversed(self.all()):
            problems = checkpoint.problems()
            if not problems:
                for skipped, why in damaged:
                    self._set_aside(skipped, why)
                return checkpoint
            damaged.append((checkpoint, "; ".join(problems)))
        if damaged:
            named = ", ".join(f"{checkpoint.path.name} ({why})" for checkpoint, why in damaged)
            raise RunFailed(
                f"Every checkpoint in {self.directory} is damaged: {named}; restore one from a copy, or remove the "
                "folder to start the run from nothing."
            )
        return None

    def _mend_exchange(self) -> None:
        """A kill between the two renames of `commit` leaves the newest step without its name: give it back."""
        newest_step = max((checkpoint.step for checkpoint in self.all()), default=-1)
        for path in sorted(self.directory.glob("step-*.superseded-*"), reverse=True):
            own = path.with_name(path.name.partition(".")[0])
            if _NAME.fullmatch(own.name) and not own.exists() and step_of(own) > newest_step:
                path.rename(own)

    def _set_aside(self, checkpoint: Checkpoint, why: str) -> None:
        aside = _free_name(checkpoint.path.with_name(checkpoint.path.name + ".damaged"))
        checkpoint.path.rename(aside)
        log.warning(
            "The checkpoint %s is damaged (%s); it is skipped and kept as %s.", checkpoint.path, why, aside.name
        )

    def pending(self, step: int) -> Path:
        """Where a checkpoint is written before it is committed."""
        generation = "" if self.fence is None else f"{self.fence.generation:06d}-"
        return self.directory / f".writing-{generation}step-{step:08d}"

    def begin(self, step: int) -> Path:
        """A fresh folder for this step's files; remains of attempts that died are removed."""
        if self.fence is not None:
            self.fence.check()  # what a later start writes must not be taken for remains
        for remains in self.directory.glob(".writing-*"):
            shutil.rmtree(remains)
        folder = self.pending(step)
        folder.mkdir(parents=True)
        return folder

    def commit(self, step: int, info: CheckpointInfo, written: int = 0) -> Checkpoint:
        """Hashes what all ranks have written, marks it, renames it, and removes what the rules do not keep.

        Raises OSError where fewer files are seen than were `written`, as a network file system's cache may have it.
        """
        folder, final = self.pending(step), self.directory / f"step-{step:08d}"
        seen = sum(path.is_file() for path in folder.rglob("*"))
        if seen < written:
            raise OSError(f"{seen} of {written} files are seen in {folder}")
        write_json(folder / STATE, info.model_dump())
        _seal(folder)
        if self.fence is not None:
            self.fence.check()
        if final.exists():
            # A run that went back to an older checkpoint comes by here again; the newer attempt is the true one.
            final.rename(_free_name(final.with_name(final.name + ".superseded")))
        folder.rename(final)
        sync(self.directory)
        try:
            self._prune()
        except OSError as error:  # somebody reads an old one: the new one is there all the same
            log.warning("An old checkpoint could not be removed (%s); it is tried again at the next.", error)
        return Checkpoint(final)

    def abandon(self, step: int) -> None:
        """Removes what a failed attempt left."""
        shutil.rmtree(self.pending(step), ignore_errors=True)

    @staticmethod
    def beside(checkpoint: Checkpoint) -> Path:
        """Where what was made from a checkpoint for other ranks is kept."""
        return checkpoint.path.with_name(checkpoint.path.name + ".elastic")

    def elastic(self, checkpoint: Checkpoint) -> Path | None:
        """What `commit_elastic` kept beside this very checkpoint, if every byte of it is there."""
        folder = self.beside(checkpoint)
        if not folder.exists():
            return None
        problems = Checkpoint(folder).problems()
        if not problems and (folder / SOURCE).read_bytes() == (checkpoint.path / MARKER).read_bytes():
            return folder
        log.warning("%s is made again (%s).", folder, "; ".join(problems) or "it belongs to another checkpoint")
        return None

    def begin_elastic(self, checkpoint: Checkpoint) -> Path:
        """A fresh folder for the checkpoint's optimizer state in the form that belongs to no rank."""
        folder = self.directory / f".writing-{self.beside(checkpoint).name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def commit_elastic(self, checkpoint: Checkpoint) -> Path:
        """Seals the folder and puts it beside the checkpoint, with which it will be removed."""
        folder, final = self.directory / f".writing-{self.beside(checkpoint).name}", self.beside(checkpoint)
        shutil.copyfile(checkpoint.path / MARKER, folder / SOURCE)
        _seal(folder)
        if final.exists():
            shutil.rmtree(final)
        folder.rename(final)
        sync(self.directory)
        return final

    def _prune(self) -> None:
        if self.rules is None:
            return
        losses = ((checkpoint.step, _validation_loss(checkpoint)) for checkpoint in self.all())
        chosen = kept(losses, self.rules)
        for old in (checkpoint for checkpoint in self.all() if checkpoint.step not in chosen):
            for folder in (self.beside(old), old.path):
                # The marker goes first: a removal that is cut short must not look like a checkpoint.
                (folder / MARKER).unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=folder != old.path)


def step_of(path: Path) -> int:
    """The step that a checkpoint folder's name gives."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise RunError(f"{path} is not a checkpoint folder; their names look like step-00001000.")
    return int(match.group(1))


def newest(directory: Path) -> Checkpoint:
    """The newest verified checkpoint, for reading only. Raises RunError when there is none."""
    store = CheckpointStore(directory)
    for _ in range(3):  # a run that is training may remove the one we look at, and has then written a newer one
        for checkpoint in reversed(store.all()):
            if not checkpoint.problems():
                return checkpoint
    raise RunError(f"{directory} holds no complete checkpoint; `pha train` writes one every checkpoint.every steps.")


def _validation_loss(checkpoint: Checkpoint) -> float | None:
    try:
        return checkpoint.info().validation_loss
    except RunError:  # damaged: only its age counts
        return None


def _seal(folder: Path) -> None:
    """Makes the folder's files durable, and writes their manifest and then the marker."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for path in [*files, *{p.parent for p in files}]:
        sync(path)  # before older checkpoints go: after a power cut the bytes must be there, not only the names
    manifest = {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
    write_json(folder / MANIFEST, manifest)
    write_atomic(folder / MARKER, sha256(folder / MANIFEST) + "\n")


def _free_name(path: Path) -> Path:
    return next(p for n in range(1, 10_000) if not (p := path.with_name(f"{path.name}-{n}")).exists())
