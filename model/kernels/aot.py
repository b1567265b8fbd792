"""Kernels compiled ahead of time for GPUs that are not there, and what the compiler says they need of them.

Needs a process in which Triton does not interpret (no TRITON_INTERPRET).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from model.kernels.launch import Launch

_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.uint8: "u8",
    torch.bool: "i1",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Target:
    """A GPU, and the limits of its multiprocessors (NVIDIA) or compute units (AMD).

    Attributes:
        name: as compilers call it.
        backend, arch: for Triton.
        lanes: threads of a warp or wavefront.
        registers: 32-bit registers of a multiprocessor, of all lanes.
        thread_registers: that one thread can have.
        shared: shared memory [bytes] that one block can have.
        shared_all: of a multiprocessor [bytes].
        warps: resident warps at most.
        reserved: shared memory [bytes] that the system takes of each block.
    """

    name: str
    backend: str
    arch: int | str
    lanes: int
    registers: int
    thread_registers: int
    shared: int
    shared_all: int
    warps: int
    reserved: int

    @property
    def description(self) -> Any:
        """For `triton.compile`."""
        return GPUTarget(self.backend, self.arch, self.lanes)


TARGETS = (
    Target("sm_80", "cuda", 80, 32, 65_536, 255, 166_912, 167_936, 64, 1024),
    Target("sm_90", "cuda", 90, 32, 65_536, 255, 232_448, 233_472, 64, 1024),
    Target("sm_100", "cuda", 100, 32, 65_536, 255, 232_448, 233_472, 64, 1024),
    # four SIMD units with 512 vector registers (of both kinds) for each of 64 lanes, and 8 wavefronts each
    Target("gfx942", "hip", "gfx942", 64, 4 * 512 * 64, 512, 65_536, 65_536, 32, 0),
)
"""A100; H100 and H200; B200; MI300X."""


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel needs.

    Attributes:
        kernel, target: names.
        warps: of a program.
        registers: 32-bit registers of a thread.
        spills: of them that did not fit, in bytes: a thread's stack and local memory (NVIDIA), four a register (AMD).
        shared: shared memory of a program [bytes].
        occupancy: resident warps over the most there can be, by registers and shared memory.
    """

    kernel: str
    target: str
    warps: int
    registers: int
    spills: int
    shared: int
    occupancy: float


def compile_launch(launch: Launch, target: Target) -> Resources:
    """Compile what `launch` would run. Raises what Triton raises if it cannot be compiled."""
    signature, constants, attributes = _specialised(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    compiled = triton.compile(source, target=target.description, options=options)
    read = _read_nvidia if target.backend == "cuda" else _read_amd
    registers, spills = read(compiled, target)
    shared = int(compiled.metadata.shared)
    return Resources(
        *(launch.kernel.__name__, target.name, launch.warps, registers, spills, shared),
        occupancy=_occupancy(target, launch.warps, registers, shared),
    )


def _specialised(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
    """Types, constants and divisibility of the arguments, as a launch on a GPU would find them."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = "*" + _TYPES[value.dtype]
            aligned = value.storage_offset() * value.element_size() % 16 == 0
        elif isinstance(value, float):
            signature[parameter.name], aligned = "fp32", False
        else:
            signature[parameter.name], aligned = "i32" if abs(value) < 2**31 else "i64", value % 16 == 0
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _read_nvidia(compiled: Any, target: Target) -> tuple[int, int]:
    """Registers and bytes of local memory, where spills go, from the compiled program itself."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
        words = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(\w+):(\d+)", words)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def _read_amd(compiled: Any, target: Target) -> tuple[int, int]:
    """Registers and spilled bytes, from the assembly's own description."""
    text = compiled.asm["amdgcn"]
    found = {name: int(number) for name, number in re.findall(r"\.(\w+):\s+(\d+)", text)}
    vector = found["vgpr_count"] + found.get("agpr_count", 0)
    return vector, 4 * found.get("vgpr_spill_count", 0)


def _occupancy(target: Target, warps: int, registers: int, shared: int) -> float:
    granule = 8  # registers are given out in eights, to warps
    by_registers = target.registers // (-(-max(registers, 1) // granule) * granule * target.lanes)
    by_shared = target.shared_all // (shared + target.reserved) if shared + target.reserved else target.warps
    programs = min(by_registers // warps, by_shared, target.warps // warps)
    return programs * warps / target.warps
