"""Which of an operation's two forms runs, and what is said of it."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from model.errors import ModelError
from model.ffn import swiglu
from model.kernels import dispatch

CPU = torch.device("cpu")


def test_the_mode_says_what_it_comes_to():
    assert "plain PyTorch" in dispatch.choose("reference", CPU)
    assert "the device is cpu" in dispatch.choose("auto", CPU)
    line = dispatch.choose("triton", CPU)
    assert "interpreter" in line and "swiglu" in line and "gated_scan" in line


def test_an_unknown_mode_is_refused():
    with pytest.raises(ModelError, match="must be one of auto, reference, triton"):
        dispatch.choose("cuda", CPU)


def test_kernels_on_a_cpu_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ModelError, match="needs a GPU and the device is cpu"):
        dispatch.choose("triton", CPU)


def test_float64_is_for_the_definition():
    x = torch.randn(2, 6, dtype=torch.float64)
    assert swiglu(x).dtype == torch.float64


def test_a_kernel_that_does_not_compile_falls_back_with_its_name(monkeypatch, caplog):
    from triton.compiler.errors import CompilationError

    def fails(x):
        raise CompilationError("src", None, "no such instruction")

    fails.supports = None
    monkeypatch.setitem(dispatch._state.operations, "swiglu", fails)
    monkeypatch.setattr(dispatch._state, "broken", {})
    monkeypatch.setattr(dispatch, "interpreting", lambda: False)
    x = torch.randn(3, 8)
    with caplog.at_level(logging.WARNING):
        y = swiglu(x)
    assert "The kernel of swiglu does not compile here" in caplog.text
    torch.testing.assert_close(y, torch.nn.functional.silu(x[:, :4]) * x[:, 4:])
    caplog.clear()
    swiglu(x)
    assert not caplog.text  # it is not tried again
    assert list(dispatch.broken()) == ["swiglu"]


def test_the_models_import_no_triton():
    code = "import sys, model.lm; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
