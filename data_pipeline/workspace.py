"""A directory that appears whole or not at all: built beside its final place, then renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipeline.errors import DataError

_LOCK = "building.lock"
#: A left-over without a lock file is removed only when it is this old (s): a younger one may be about to lock itself.
_GRACE = 60.0


@contextmanager
def workspace(output: Path) -> Iterator[Path]:
    """A temporary directory beside `output` that becomes `output` when the block ends without an exception.

    On failure it is removed. A killed process leaves it behind under a hidden name; the next workspace for the same
    output removes it, told from one in use by a lock that dies with its process.

    Raises:
        DataError: the disk is full, the place cannot be written to, or `output` has appeared meanwhile.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(output)
        temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=_prefix(output)))
    except OSError as error:
        raise _explain(error, output) from error
    try:
        with (temporary / _LOCK).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield temporary
            (temporary / _LOCK).unlink()
            temporary.chmod(0o755)  # mkdtemp makes directories private
            _sync(temporary)
            os.rename(temporary, output)  # noqa: PTH104 - Path.rename says the same, with less known semantics
            _sync(output.parent)
    except OSError as error:
        raise _explain(error, output) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _prefix(output: Path) -> str:
    return f".{output.name}.building-"


def _remove_leftovers(output: Path) -> None:
    for leftover in output.parent.glob(f"{_prefix(output)}*"):
        try:
            with (leftover / _LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
        except BlockingIOError:
            continue  # its build is alive
        except FileNotFoundError:
            with suppress(FileNotFoundError):
                if time.time() - leftover.stat().st_mtime > _GRACE:
                    shutil.rmtree(leftover, ignore_errors=True)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: OSError, output: Path) -> DataError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(
            f"the disk of {output.parent} is full, so {output} was not built and nothing is left of it: a build needs "
            "about 1.6 times the bytes of its text; free space or choose another output."
        )
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return DataError(f"{output} appeared while it was being built: remove it or choose another output.")
    return DataError(f"{output} cannot be built ({error}): check the directory and its permissions.")
