"""One cluster for each module of tests, in a place of its own."""

from __future__ import annotations

import os
import shutil
import time
import warnings

import pytest

os.environ.setdefault("PHA_SLURM_SHARED", f"/tmp/pha-slurm-{os.getpid()}")  # not the one that somebody tries things on
from tests.slurm import bed


@pytest.fixture(scope="module")
def shared(request):
    """A fresh folder that all nodes see, while the cluster is up; a module's `BED` says how it is brought up.

    Where there can be none it says so loudly.
    """
    if reason := bed.missing():
        warnings.warn(f"Slurm was NOT tested by {request.module.__name__}: {reason}", stacklevel=1)
        pytest.skip(reason)
    bed.up(**getattr(request.module, "BED", {}))
    place = bed.SHARED / f"tests-{time.time_ns()}"
    place.mkdir()
    yield place
    bed.down()
    shutil.rmtree(bed.SHARED)
