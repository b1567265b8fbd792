"""Kernels run in Triton's interpreter, and memory that is not initialised holds NaN."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch

from model.kernels import dispatch


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    """Operations are their kernels, and an output that a kernel leaves out is seen."""
    if not dispatch.installed():
        pytest.skip("triton is not installed here: it has no wheel for this system")
    from model.kernels.interpreter import whole_rows

    before = dispatch.mode()
    dispatch.choose("triton", torch.device("cpu"))
    torch.use_deterministic_algorithms(True)  # fills what torch.empty and its kin return with NaN
    try:
        with whole_rows():
            yield
    finally:
        torch.use_deterministic_algorithms(False)
        dispatch.choose(before, torch.device("cpu"))
