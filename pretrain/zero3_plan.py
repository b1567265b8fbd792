"""What DeepSpeed 0.19.8 holds and when at ZeRO stage 3: `stage3.py` and `partitioned_param_coordinator.py`."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

import torch
from torch import nn

from pretrain.ledger import Holding, Ledger
from pretrain.zero_plan import DOUBLE, FLOAT, Backend, Bucket, Parameters, Whole, padded


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
    ) -> None:
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
        with self.ledger.transient(
            "buffers", DOUBLE * math.ceil(max(p.numel() for p in self.parameters.all()) / self.world)
        ):
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

    def __init__(self, ledger: Ledger, parameters: list[nn.Parameter], world: int, backend: Backend, low: int) -> None:
        self.ledger, self.parameters = ledger, parameters
        self.waiting = set(parameters)
        size = low * sum(padded(p.numel(), world) for p in parameters)
        self.alone = len(parameters) == 1 and low == FLOAT
        self.flat = Holding(ledger, "buffers", size)
        if backend.copies:
            with ledger.transient("buffers", size):
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
