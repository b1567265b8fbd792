"""What DeepSpeed holds and when, by ZeRO stage: the memory of its optimizers without them (DeepSpeed 0.19.8).

Each class takes the place of DeepSpeed in a step that is run on tensors without data (`pretrain.memory_plan`): it is
told of each gradient when it comes, of the end of a backward pass and of the step, and holds in the ledger what
`runtime/engine.py`, `runtime/zero/stage_1_and_2.py` and `stage3.py` hold at these moments with the settings of
`pretrain.deepspeed_config`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
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

    def __init__(self, ledger: Ledger, parameters: Parameters, world: int, backend: Backend, zero: dict[str, Any]):
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
        self.sizes = [_padded(sum(p.numel() for p in group), 2 * self.world) for group in self.parameters.groups]
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


class Scattered(Whole):
    """Stage 3: a part of everything; weights are gathered when a module needs them.

    They stay until their next use, if that is not too far; each module's place in the step is known once one step has
    been taken. Small weights stay for ever.
    """

    def __init__(
        self,
        ledger: Ledger,
        parameters: Parameters,
        world: int,
        backend: Backend,
        zero: dict[str, Any],
        model: nn.Module,
    ):
        self.prefetch = int(zero.get("stage3_prefetch_bucket_size", 5e7))
        self.reuse = int(zero.get("stage3_max_reuse_distance", 1e9))
        self.available = int(zero.get("stage3_max_live_parameters", 1e9))
        self.threshold = int(zero.get("stage3_param_persistence_threshold", 1e5))
        self.groups_gathered: dict[nn.Parameter, _Gather] = {}
        self.whole: dict[nn.Parameter, Holding] = {}
        self.late: set[nn.Parameter] = set()
        """Weights of modules that no gradient leaves, whose end DeepSpeed is not told of: they go after all others."""
        self.active: Counter[nn.Parameter] = Counter()
        self.order: list[list[nn.Parameter]] = []
        self.recorded: list[list[nn.Parameter]] = []
        self.next_fetch = 0
        super().__init__(ledger, parameters, world, backend, zero)
        for module in model.modules():
            self._watch(module, list(module.parameters(recurse=False)))

    def start(self) -> None:
        """Each weight is cut; its part, a gradient of that size, the optimizer's, and a bucket for gradients stay."""
        self.part = sum(math.ceil(p.numel() / self.world) for p in self.parameters.all())
        Holding(self.ledger, "weights", FLOAT * self.part)
        for parameter in self.parameters.all():
            self.ledger.resize(parameter, 0)
            if parameter.numel() <= self.threshold:
                self.whole[parameter] = Holding(self.ledger, "weights", FLOAT * parameter.numel())
        self.buckets = {}
        for narrow in {parameter in self.parameters.narrow for parameter in self.parameters.all()}:
            low = self.backend.low if narrow else FLOAT
            self.buckets[narrow] = Bucket(self.ledger, self.bucket, self.backend.reserves, low, low)
        Holding(self.ledger, "gradients", FLOAT * self.part)
        # The third part is the weights once more: DeepSpeed means to share them where all is fp32, but compares a
        # torch.device with a string, and so always copies.
        Holding(self.ledger, "optimizer", 3 * FLOAT * self.part)

    def begin_forward(self) -> None:
        """The order of the last forward and backward pass is what the next one is planned by."""
        self.order, self.recorded, self.next_fetch = self.recorded, [], 0

    def take(self, parameter: nn.Parameter) -> None:
        """The gradient goes into the bucket."""
        super().take(parameter)
        bucket = self.buckets[parameter in self.parameters.narrow]
        if bucket.used and bucket.used + parameter.numel() > self.bucket:
            self._reduce(bucket)
        bucket.fill(parameter)

    def end_backward(self) -> None:
        """What is left in the buckets is scattered."""
        for bucket in self.buckets.values():
            self._reduce(bucket)
        self.drop_gradients()
        for parameter in self.late:
            self.active[parameter] = 0
            self._release(parameter)

    def step(self) -> None:
        """Weights are cut again; each group's gradients are copied into one tensor for the step."""
        for parameter in list(self.whole):
            self._release(parameter)
        with self.ledger.transient("buffers", DOUBLE * math.ceil(max(p.numel() for p in self.parameters.all()) / self.world)):
            pass
        for group in self.parameters.groups:
            if len(group) > 1:
                with self.ledger.transient("gradients", FLOAT * sum(math.ceil(p.numel() / self.world) for p in group)):
                    pass
        self.drop_gradients()

    def _reduce(self, bucket: Bucket) -> None:
        """A copy of all in it, in the order of ranks, is summed and scattered."""
        size = bucket.low * bucket.used
        if len(bucket.parameters) > 1:
            with self.ledger.transient("buffers", size * (2 if self.backend.copies else 1)):
                pass
        for parameter in bucket.parameters:
            parameter.grad = None
        bucket.empty()

    def _watch(self, module: nn.Module, own: list[nn.Parameter]) -> None:
        def before(*_: Any) -> None:
            self._fetch(own)

        def after(_: nn.Module, inputs: Any, output: Any) -> None:
            self._leave(own)
            if not any(getattr(x, "requires_grad", False) for x in inputs) and torch.is_grad_enabled():
                self.late.update(own)
            for result in output if isinstance(output, tuple) else (output,):
                if getattr(result, "requires_grad", False):
                    result.register_hook(before)
                    break

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)
        for parameter in own:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: self._leave([p] if p not in self.late else []))

    def _fetch(self, own: list[nn.Parameter]) -> None:
        """Gathers what a module needs now, and what the next ones will need."""
        self.recorded.append(own)
        self._gather([p for p in own if p not in self.whole and p not in self.groups_gathered])
        for parameter in own:
            self.active[parameter] = 1
            if parameter in self.groups_gathered:
                self.groups_gathered[parameter].arrive(self, parameter)
        if not self.order:
            return
        place = len(self.recorded)
        self.next_fetch, numbers = max(self.next_fetch, place), 0
        wanted: dict[nn.Parameter, None] = {}  # in order; a list would compare tensors
        held = sum(p.numel() for p in self.whole) + sum(p.numel() for p in self.groups_gathered)
        while self.next_fetch < len(self.order) and numbers < min(self.prefetch, self.available - held):
            for parameter in self.order[self.next_fetch]:
                known = parameter in self.whole or parameter in self.groups_gathered or parameter in wanted
                if not known:
                    wanted[parameter] = None
                    numbers += parameter.numel()
            self.next_fetch += 1
        self._gather(list(wanted))

    def _gather(self, wanted: list[nn.Parameter]) -> None:
        by_type: dict[bool, list[nn.Parameter]] = defaultdict(list)
        for parameter in wanted:
            by_type[parameter in self.parameters.narrow].append(parameter)
        for narrow, some in by_type.items():
            gather = _Gather(self.ledger, some, self.world, self.backend, self.backend.low if narrow else FLOAT)
            for parameter in some:
                self.groups_gathered[parameter] = gather

    def _leave(self, own: list[nn.Parameter]) -> None:
        """Releases a module's weights, but those that are used again soon."""
        place = len(self.recorded)
        near: set[nn.Parameter] = set()
        passed = 0
        for later in self.order[place:] if self.order else []:
            if passed >= self.reuse:
                break
            near.update(later)
            passed += sum(p.numel() for p in later)
        for parameter in own:
            self.active[parameter] = 0
            if parameter not in near:
                self._release(parameter)

    def _release(self, parameter: nn.Parameter) -> None:
        if parameter.numel() > self.threshold and parameter in self.whole and not self.active[parameter]:
            self.whole.pop(parameter).free()


class _Gather:
    """Weights gathered by one call: flat as they come, and each by itself from when the first of them is needed."""

    def __init__(
        self, ledger: Ledger, parameters: list[nn.Parameter], world: int, backend: Backend, low: int
    ) -> None:
        self.ledger, self.parameters = ledger, parameters
        self.waiting = set(parameters)
        padded = sum(_padded(p.numel(), world) for p in parameters)
        self.alone = len(parameters) == 1 and low == FLOAT
        self.flat = Holding(ledger, "buffers", low * padded)
        if backend.copies:
            with ledger.transient("buffers", low * padded):
                pass

    def arrive(self, owner: Scattered, parameter: nn.Parameter) -> None:
        """A module waits for one of them: all are then copied out; the flat tensor goes with the last one."""
        if self.alone:
            self.flat.free()
        for one in self.parameters:
            if one not in owner.whole and one in self.waiting:
                owner.whole[one] = Holding(self.ledger, "weights", FLOAT * one.numel())
        self.waiting.discard(parameter)
        owner.groups_gathered.pop(parameter)
        if not self.waiting:
            self.flat.free()


def _padded(size: int, multiple: int) -> int:
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
