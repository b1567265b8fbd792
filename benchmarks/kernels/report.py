"""What was found of every kernel, as tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.tables import Table

BANDWIDTH = 3.0e12
"""Of an H100's memory, as measured by a copy [bytes/s]."""

LAYER_TOKENS = 24 * 1024
"""Tokens of the step that times are predicted for: the batch of the paper's WikiText-103 runs."""


@dataclass
class Report:
    """Attributes are what `benchmarks.kernels.resources` and `.traffic` print, the latter by preset."""

    resources: list[dict[str, Any]] = field(default_factory=list)
    traffic: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    triton: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "layers": [self._layer(name) for name in self.traffic]}

    def markdown(self) -> str:
        """For a document."""
        return "\n".join(table.markdown() for table in self.tables())

    def tables(self) -> list[Table]:
        """Those of what was measured."""
        found = [self._traffic(name) for name in self.traffic]
        if self.traffic:
            found.append(self._layers())
        if self.resources:
            found.append(self._resources())
        return found

    def _traffic(self, name: str) -> Table:
        table = Table(
            f"Bytes a token at the shapes of {name}",
            ("operation", "pass", "kernels", "floor", "kernels / floor", "PyTorch chain", "chain / kernels"),
        )
        for case in self.traffic[name]:
            for which, found in case["passes"].items():
                kernel, floor, chain = found["kernel"], found["floor"], found["chain"]
                table.rows.append(
                    [
                        *(case["name"], which, f"{kernel:,.0f}", f"{floor:,.0f}", f"{kernel / floor:.2f}"),
                        *(f"{chain:,.0f}", f"{chain / kernel:.1f}"),
                    ]
                )
        table.remarks.append(
            "Kernels: each element that a load or store of a launched program lets through, counted in Triton's "
            "interpreter; caches are not thought of. Floor: each input once, each result once. Chain: inputs "
            "and outputs of each operation that PyTorch runs for the definition, views left out. Projections are bf16, "
            "the stream and parameters float32, as under autocast. A backward pass is below its floor where the "
            "forward pass kept less than its inputs, as the sum of two."
        )
        return table

    def _layer(self, name: str) -> dict[str, Any]:
        """Predicted milliseconds of a PHA layer's operations that are no matrix products."""
        result: dict[str, Any] = {"preset": name}
        for kind in ("kernel", "floor", "chain"):
            moved = sum(
                found[kind] * case["per_layer"] for case in self.traffic[name] for found in case["passes"].values()
            )
            result[kind] = 1e3 * moved * LAYER_TOKENS / BANDWIDTH
        return result

    def _layers(self) -> Table:
        table = Table(
            f"A PHA layer's memory time, predicted at {BANDWIDTH / 1e12:.1f} TB/s, {LAYER_TOKENS:,} tokens, ms",
            ("preset", "kernels", "floor", "PyTorch chain", "chain / kernels"),
        )
        for name in self.traffic:
            found = self._layer(name)
            times = (f"{found[kind]:.2f}" for kind in ("kernel", "floor", "chain"))
            table.rows.append([name, *times, f"{found['chain'] / found['kernel']:.1f}"])
        table.remarks.append(
            "Forward and backward of the first norm, the scan, the queries' and keys' norm and turn, both SwiGLU and "
            "the fusion epilogue; matrix products and attention itself are left out."
        )
        return table

    def _resources(self) -> Table:
        targets = _unique(found["target"] for found in self.resources)
        table = Table(
            "Compiled ahead of time: registers a thread · shared memory [KiB] · occupancy",
            ("kernel", "warps", *targets, "spilled bytes"),
        )
        by_kernel: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
        for number, found in enumerate(self.resources):
            variant = number // len(targets)  # the targets of one launch follow each other
            name = f"{found['module'].rsplit('.', 1)[-1]}: {found['kernel'].strip('_').removesuffix('_kernel')}"
            by_kernel.setdefault((name, found["preset"], str(variant)), {})[found["target"]] = found
        for (name, preset, _), by_target in by_kernel.items():
            cells = [
                f"{one['registers']} · {one['shared'] / 1024:.1f} · {one['occupancy']:.0%}"
                for one in (by_target[target] for target in targets)
            ]
            spilled = sum(one["spills"] for one in by_target.values())
            warps = next(iter(by_target.values()))["warps"]
            table.rows.append([f"{name} ({preset})", str(warps), *cells, str(spilled)])
        table.remarks.append(
            f"Triton {self.triton}. Registers and local memory (spills): `cuobjdump` on the compiled program, and the "
            "assembly's own description for gfx942 (vector registers). Occupancy: resident warps over the most there "
            "can be, by registers and shared memory. A launch that both presets share is listed once."
        )
        return table


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
