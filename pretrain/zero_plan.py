"""What DeepSpeed holds and when, by ZeRO stage: the memory of its optimizers without them (DeepSpeed 0.19.8).

Each class takes the place of DeepSpeed in a step that is run on tensors without data (`pretrain.memory_plan`): it is
told of each gradient when it comes, of the end of a backward pass and of the step, and holds in the ledger what
`runtime/engine.py` and `runtime/zero/stage_1_and_2.py` hold at these moments with the settings of
`pretrain.deepspeed_config`. Stage 3 is in `pretrain.zero3_plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pretrain.ledger import Holding, Ledger

FLOAT = 4
DOUBLE = 8
"""Norms of gradients are taken in float64, tensor by tensor."""
STAGE_0_BUCKET = 500_000_000
"""Numbers that are summed at once at stage 0; no setting of DeepSpeed changes it."""


@dataclass(frozen=True)
class Backend:
    """What the device and its collectives make of DeepSpeed's requests.

    Attributes:
        reserves: an empty buffer is held in full, as on a GPU; else only what was written, as a system's pages are.
        copies: a gather holds its result, and a scattered sum its input, once more (gloo).
        low: bytes of a number in the collectives of parameters that autocast may narrow; 4 without autocast.
    """

    reserves: bool
    copies: bool
    low: int = FLOAT


@dataclass(frozen=True)
class Parameters:
    """The trained parameters as DeepSpeed sees them.

    Attributes:
        groups: of the optimizer.
        narrow: those that travel in the type of autocast: the weights of plain `nn.Linear` modules.
    """

    groups: Sequence[Sequence[nn.Parameter]]
    narrow: frozenset[nn.Parameter]

    def all(self) -> list[nn.Parameter]:
        """In the optimizer's order."""
        return [parameter for group in self.groups for parameter in group]


class Whole:
    """Stage 0: everything on every rank; gradients are summed in `step`, in a copy."""

    def __init__(
        self, ledger: Ledger, parameters: Parameters, world: int, backend: Backend, zero: dict[str, Any]
    ) -> None:
        self.ledger, self.parameters, self.world, self.backend = ledger, parameters, world, backend
        self.bucket = int(zero.get("reduce_bucket_size", 5e8))
        self.total = sum(parameter.numel() for parameter in parameters.all())
        self.hooks = [p.register_post_accumulate_grad_hook(self.take) for p in parameters.all()]
        self.start()

    def start(self) -> None:
        """What is there before the first step, and Adam's moments, which come with it."""
        Holding(self.ledger, "optimizer", 2 * FLOAT * self.total)

    def take(self, parameter: nn.Parameter) -> None:
        """A gradient is there."""
        if parameter.grad is not None:
            self.ledger.move(parameter.grad, "gradients")

    def end_backward(self) -> None:
        """One micro-batch has gone back."""

    def step(self) -> None:
        """The optimizer's step, and what goes before it."""
        if self.world > 1:
            for size in _pieces([p.numel() for p in self.parameters.all()], STAGE_0_BUCKET):
                with self.ledger.transient("buffers", FLOAT * size):
                    pass
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """No parameter has a gradient any more."""
        for parameter in self.parameters.all():
            parameter.grad = None


class Divided(Whole):
    """Stages 1 and 2: weights whole, as one flat tensor a group; a part of the moments and of the fp32 weights.

    At stage 1 gradients are reduced in `step`, at stage 2 as they come, through a bucket; a rank's own are then copied
    out of it.
    """

    early = False
    """Whether gradients leave as they come."""

    def start(self) -> None:
        """Flat weights, group by group, from which the rank's part is copied; then moments."""
        self.sizes = [padded(sum(p.numel() for p in group), 2 * self.world) for group in self.parameters.groups]
        for size in self.sizes:
            with self.ledger.transient("weights", FLOAT * size):
                pass
            Holding(self.ledger, "optimizer", FLOAT * size // self.world)
        Holding(self.ledger, "optimizer", 2 * FLOAT * sum(self.sizes) // self.world)
        self.mine = self._own()
        self.buckets: dict[bool, Bucket] = {}
        self.own: Holding | None = None

    def take(self, parameter: nn.Parameter) -> None:
        """At stage 2 the gradient goes into the bucket."""
        self._open()
        super().take(parameter)
        if self.early:
            self._fill(parameter)

    def end_backward(self) -> None:
        """At stage 2 the gradients are reduced, and a rank's own added to those of earlier micro-batches."""
        if self.early:
            self._reduce_rest()

    def step(self) -> None:
        """Reduces what is left, takes the norm, and steps group by group; then all gather the new weights."""
        if not self.early:
            for parameter in self.parameters.all():
                self._fill(parameter)
            self._reduce_rest()
        with self.ledger.transient("buffers", DOUBLE * max((p.numel() for p in self.mine), default=0)):
            pass
        for size in self.sizes:
            with self.ledger.transient("gradients", FLOAT * size // self.world):
                pass
        if self.own is not None:
            self.own.free()
            self.own = None
        if self.backend.copies:
            for size in self.sizes:
                with self.ledger.transient("buffers", FLOAT * size):
                    pass
        self.drop_gradients()

    def _own(self) -> set[nn.Parameter]:
        """The parameters that lie in the part of the rank that has most of them, in whole or in part."""
        found: list[set[nn.Parameter]] = [set() for _ in range(self.world)]
        for group, size in zip(self.parameters.groups, self.sizes, strict=True):
            part, begin = size // self.world, 0
            for parameter in group:
                end = begin + parameter.numel()
                for rank in range(begin // part, min(self.world - 1, (end - 1) // part) + 1):
                    found[rank].add(parameter)
                begin = end
        return max(found, key=lambda own: sum(p.numel() for p in own))

    def _open(self) -> None:
        """A buffer for each type that gradients travel in, from a backward pass's first gradient on."""
        for narrow in {parameter in self.parameters.narrow for parameter in self.parameters.all()}:
            if narrow not in self.buckets:
                low = self.backend.low if narrow else FLOAT
                self.buckets[narrow] = Bucket(self.ledger, self.bucket, self.backend.reserves, FLOAT, low)

    def _fill(self, parameter: nn.Parameter) -> None:
        """Copies a gradient into its bucket, which is reduced first if it has no room."""
        bucket = self.buckets[parameter in self.parameters.narrow]
        if bucket.used and bucket.used + parameter.numel() > self.bucket:
            self._reduce(bucket)
        bucket.fill(parameter)

    def _reduce_rest(self) -> None:
        before, self.own = self.own, None
        for bucket in self.buckets.values():
            self._reduce(bucket)
            bucket.close()
        self.buckets = {}
        if before is not None:  # of earlier micro-batches: the new ones are added to them
            before.free()
        self.drop_gradients()

    def _reduce(self, bucket: Bucket) -> None:
        """Sums over ranks in a copy; own gradients are then copied out, those of others forgotten."""
        with self.ledger.transient("buffers", FLOAT * bucket.used):
            if bucket.low < FLOAT:
                with self.ledger.transient("buffers", bucket.low * bucket.used):
                    pass
        if self.own is None:
            self.own = Holding(self.ledger, "gradients")
            if self.backend.reserves:
                self.own.grow(FLOAT * sum(p.numel() for p in self.mine))
        for parameter in bucket.parameters:
            if parameter in self.mine and not self.backend.reserves:
                self.own.grow(FLOAT * parameter.numel())
            if self.early or parameter in self.mine:
                parameter.grad = None
        bucket.empty()


class DividedEarly(Divided):
    """Stage 2."""

    early = True


class Bucket:
    """A buffer of fixed size for gradients on their way."""

    def __init__(self, ledger: Ledger, size: int, reserves: bool, width: int, low: int) -> None:
        self.parameters: list[nn.Parameter] = []
        self.used, self.size, self.width, self.low, self.reserves = 0, size, width, low, reserves
        self._holding = Holding(ledger, "buffers", width * size if reserves else 0)

    def fill(self, parameter: nn.Parameter) -> None:
        """The gradient is copied here, unless it is larger than the whole buffer, and its own memory is free."""
        self.parameters.append(parameter)
        self.used += parameter.numel()
        if self.used > self.size:
            return
        if not self.reserves:
            self._holding.grow(max(0, self.width * self.used - self._holding.size))
        parameter.grad = None

    def empty(self) -> None:
        """All of it may be written anew."""
        self.parameters, self.used = [], 0

    def close(self) -> None:
        """The buffer is given back."""
        self._holding.free()


def padded(size: int, multiple: int) -> int:
    """The smallest multiple that is at least `size`."""
    return -(-size // multiple) * multiple


def _pieces(sizes: list[int], most: int) -> list[int]:
    """Sums of neighbours, each closed once it is above `most`."""
    found, open_ = [], 0
    for size in sizes:
        open_ += size
        if open_ > most:
            found.append(open_)
            open_ = 0
    return [*found, open_] if open_ else found
