"""The one place that decides whether an operation runs as plain PyTorch or as a Triton kernel.

An operation is written once, in PyTorch, and that function is its definition. `@fused("module")` puts beside it the
function of the same name in `model/kernels/module.py`, which takes the same arguments. Which of the two runs is
decided by the mode, by the tensors, and by whether the kernel could be compiled before:

- "auto": kernels on a GPU where triton is installed, PyTorch elsewhere;
- "reference": PyTorch everywhere;
- "triton": kernels, and an error where they cannot run. On a CPU they run in Triton's interpreter (TRITON_INTERPRET=1),
  which is for tests: it is thousands of times slower.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from model.errors import ModelError

log = logging.getLogger(__name__)

Mode = Literal["auto", "reference", "triton"]

Operation = TypeVar("Operation", bound=Callable[..., Any])


class _State:
    """What was asked for, and what has been learned of this process."""

    mode: Mode = "auto"
    operations: dict[str, Callable[..., Any] | None]  # name → its kernel once loaded
    broken: dict[str, str]  # name → why its kernel cannot be compiled here

    def __init__(self) -> None:
        self.operations, self.broken = {}, {}


_state = _State()


def installed() -> bool:
    """Whether triton can be imported; it is not."""
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def choose(mode: str, device: torch.device) -> str:
    """Set the mode for this process; say in one line what it comes to on `device`, and why.

    Raises:
        ModelError: the mode has no such name, or "triton" cannot run here.
    """
    if mode not in get_args(Mode):
        raise ModelError(f"kernels is {mode!r}; it must be one of {', '.join(get_args(Mode))}.")
    _state.mode = mode  # type: ignore[assignment]  # checked above
    if mode == "reference":
        return "kernels: plain PyTorch, because kernels=reference asks for it"
    if mode == "triton":
        _require(device)
    if not installed():
        return "kernels: plain PyTorch, because triton is not installed (the extra [gpu] has it)"
    if mode == "auto" and device.type != "cuda":
        return f"kernels: plain PyTorch, because the device is {device.type} and kernels=auto keeps Triton for GPUs"
    where = "Triton's interpreter on the CPU" if interpreting() else _name(device)
    names = ", ".join(sorted(_state.operations))
    return f"kernels: Triton on {where}, because kernels={mode}; fused: {names}"


def mode() -> Mode:
    """The mode in force."""
    return _state.mode


def broken() -> dict[str, str]:
    """Operations whose kernel failed to compile in this process, and how it failed."""
    return dict(_state.broken)


def fused(module: str) -> Callable[[Operation], Operation]:
    """Put a kernel beside an operation in plain PyTorch.

    The kernel's module has a function of the operation's name with its arguments, and may have `supports`, which
    takes them too and returns why they are not for the kernel, or None.

    Args:
        module: of `model.kernels`; imported when a kernel is first wanted.
    """

    def decorate(operation: Operation) -> Operation:
        name = operation.__name__
        _state.operations[name] = None

        @functools.wraps(operation)
        def run(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or not _wanted(name, args):
                return operation(*args, **kwargs)
            kernel = _state.operations[name] or _load(name, module)
            if kernel.supports is not None and kernel.supports(*args, **kwargs) is not None:  # type: ignore[attr-defined]
                return operation(*args, **kwargs)
            try:
                return kernel(*args, **kwargs)
            except Exception as error:
                if interpreting():
                    raise
                give_up(name, error)
                return operation(*args, **kwargs)

        return run  # type: ignore[return-value]

    return decorate


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"the device {device.type}"


def _wanted(name: str, args: tuple[Any, ...]) -> bool:
    if _state.mode == "reference" or name in _state.broken:
        return False
    tensor = next(a for a in args if isinstance(a, Tensor))
    if tensor.dtype == torch.float64 or not tensor.numel():
        return False
    if tensor.device.type == "cuda":
        return installed()
    return _state.mode == "triton" and tensor.device.type in ("cpu", "meta")


def _load(name: str, module: str) -> Callable[..., Any]:
    kernels = importlib.import_module(f"model.kernels.{module}")
    kernel: Callable[..., Any] = getattr(kernels, name)
    kernel.supports = getattr(kernels, "supports", None)  # type: ignore[attr-defined]
    _state.operations[name] = kernel
    return kernel


def _is_compilers(error: Exception) -> bool:
    """Whether the error is a compiler's own: it cannot make or load the kernel. Errors of the device are not."""
    return type(error).__module__.startswith(("triton", "torch._dynamo", "torch._inductor"))


def by_hand(x: Tensor) -> bool:
    """Whether an operation on x goes back by its written-out backward pass: on CPUs, unless torch.compile makes one."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def compiles(name: str) -> bool:
    """Whether a kernel that PyTorch itself makes with Triton is to be used: none failed, and kernels are wanted."""
    return _state.mode != "reference" and name not in _state.broken and installed()


def give_up(name: str, error: Exception) -> None:
    """Use a kernel no more in this process if `error` is a compiler's, and say so; raise any other error again."""
    if not _is_compilers(error):
        raise error
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    _state.broken[name] = reason
    log.warning("The kernel of %s does not compile here (%s); plain PyTorch takes its place.", name, reason)


def _require(device: torch.device) -> None:
    """Raise ModelError unless kernels can run on the device."""
    if not installed():
        raise ModelError("kernels=triton needs the package triton; install the extra [gpu], or set kernels=auto.")
    if device.type not in ("cuda", "meta") and not interpreting():
        raise ModelError(
            f"kernels=triton needs a GPU and the device is {device.type}; set kernels=auto, or, to test kernels slowly "
            "on a CPU, start with TRITON_INTERPRET=1."
        )
