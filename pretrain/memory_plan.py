"""How much memory a rank will need, by part: a step of the real model is run on tensors without data.

Nothing is known here of any architecture. The model is made on PyTorch's fake tensors, which have shapes and storages
but no data, and a step is run as `pretrain.loop` and `pretrain.engine` run it: micro-batches forward and backward with
recomputation as configured, and the optimizer's step. `pretrain.ledger` counts each storage while it lives, and
`pretrain.zero_plan` holds what DeepSpeed would hold. What is told is the largest sum of any moment.

For a GPU, operations are traced as their Triton kernels, which are described and not run, under autocast; attention is
PyTorch's fused one without a mask, which keeps what FlexAttention keeps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model import rows
from model.config import ModelConfig
from model.embedding import TiedEmbedding
from model.kernels import dispatch
from model.lm import LanguageModel
from pretrain.config import RunConfig
from pretrain.deepspeed_config import batch_split, deepspeed_config
from pretrain.ledger import Ledger
from pretrain.optim import parameter_groups
from pretrain.zero_plan import Backend, Divided, DividedEarly, Parameters, Scattered, Whole

KINDS = ("weights", "gradients", "optimizer", "buffers", "activations", "head", "batch")
"""The parts, in the order in which they are shown."""

BYTES_PER_TOKEN = 8 + 8 + 4
"""Inputs, labels and document numbers of a rank's batch, on the device."""


@dataclass(frozen=True)
class Memory:
    """What a rank holds at its fullest moment, beyond what the process holds before the model is made.

    Attributes:
        peak: bytes.
        phase: the moment: "start", "training" or "validation".
        parts: kind → bytes at that moment; they add up to `peak`.
        phases: phase → the most bytes in it.
        kept: bytes that one micro-batch's forward pass leaves for its backward pass.
        state: bytes that stay from step to step.
    """

    peak: int
    phase: str
    parts: dict[str, int]
    phases: dict[str, int]
    kept: int
    state: int


def plan_memory(config: RunConfig, world: int, *, gpu: bool, bf16: bool) -> Memory:
    """Runs a step of this run, of which the vocabulary is known, on tensors without data.

    Args:
        config: the run, for its largest batch and its longest sequences.
        world: ranks.
        gpu: whether for a GPU or for a CPU.
        bf16: whether matrix products are in bf16.

    Raises:
        RunError: the batch does not divide, or keys under deepspeed clash with ours.
    """
    micro, count = batch_split(config, world)
    ledger = Ledger()
    with _without_data(gpu, bf16), ledger:
        rank = _Rank(config, world, ledger, gpu, bf16)
        for _ in range(2 if rank.stage == 3 else 1):  # stage 3 learns the order of modules in its first step
            rank.train(micro, min(count, 2), micro * count)
        state = ledger.total
        rank.validate()
    phase, peak, parts = ledger.peak
    return Memory(
        peak=peak,
        phase=phase,
        parts={kind: parts.get(kind, 0) for kind in KINDS},
        phases={name: most for name, (most, _) in ledger.peaks.items()},
        kept=rank.kept,
        state=state,
    )


class _Rank:
    """A model with its optimizer under DeepSpeed, and the loop's calls, on tensors without data."""

    def __init__(self, config: RunConfig, world: int, ledger: Ledger, gpu: bool, bf16: bool) -> None:
        self.config, self.ledger, self.bf16, self.kept = config, ledger, bf16 and gpu, 0
        settings = deepspeed_config(config, world, bf16=bf16, device="cuda" if gpu else "cpu")
        zero = settings["zero_optimization"]
        self.stage = int(zero["stage"])
        with ledger.counting("weights"):
            self.model = LanguageModel(config.model)
        groups = [group["params"] for group in parameter_groups(self.model, config.optim)]
        plain = [module.weight for module in self.model.modules() if type(module) is nn.Linear]
        parameters = Parameters(groups, frozenset(plain if bf16 else ()))
        backend = Backend(reserves=gpu, copies=not gpu and world > 1, low=2 if bf16 else 4)
        arguments = (ledger, parameters, world, backend, zero)
        self.zero: Whole
        if self.stage == 3:
            self.zero = Scattered(*arguments, self.model)
        else:
            self.zero = (Whole, Divided, DividedEarly)[self.stage](*arguments)
        recompute = config.train.recompute
        if recompute.mode != "none":
            away = bool(settings["activation_checkpointing"]["cpu_checkpointing"])
            self.model.set_recompute(_checkpointing(ledger, away), recompute.every)
        _count_head(self.model, ledger)
        self.model.begin_step(0)

    def train(self, rows_: int, count: int, share: int) -> None:
        """A step of `count` micro-batches of `rows_` sequences, of a rank's `share`."""
        self.ledger.phase = "training"
        self.model.train()
        self.model.watch_branches(True)  # as in a step that is logged
        with self.ledger.transient("batch", share * self.config.data.longest * BYTES_PER_TOKEN):
            for _ in range(count):
                before = self.ledger.parts["activations"] + self.ledger.parts["head"]
                with self._autocast():
                    loss = self._loss(rows_)
                self.kept = self.ledger.parts["activations"] + self.ledger.parts["head"] - before
                (loss * 0.5).backward()  # type: ignore[no-untyped-call]
                self.zero.end_backward()
        self.zero.step()

    def validate(self) -> None:
        """A batch of the validation."""
        self.ledger.phase = "validation"
        self.model.eval()
        batch = self.config.eval.batch
        with self.ledger.transient("batch", batch * self.config.data.longest * BYTES_PER_TOKEN), torch.no_grad():
            with self._autocast():
                self._loss(batch)

    def _loss(self, rows_: int) -> Tensor:
        if isinstance(self.zero, Scattered):
            self.zero.begin_forward()
        length = self.config.data.longest
        with mock.patch.object(self.ledger, "add"):  # the batch is counted as a whole
            tokens, labels = (torch.zeros(rows_, length, dtype=torch.int64) for _ in range(2))
            documents = torch.zeros(rows_, length, dtype=torch.int32)
        loss: Tensor = self.model(tokens, documents, labels)
        return loss

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)


def _count_head(model: LanguageModel, ledger: Ledger) -> None:
    """The final product and the loss are counted by themselves."""

    def begin(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        if "loss" in arguments:
            ledger.kind = "head"

    def end(*_: Any) -> None:
        ledger.kind = "activations"

    embedding = model.embedding
    assert isinstance(embedding, TiedEmbedding)
    embedding.register_forward_pre_hook(begin)
    embedding.register_forward_hook(end)


def _checkpointing(ledger: Ledger, away: bool) -> Callable[..., Any]:
    """Recomputation as DeepSpeed's: the block's inputs stay, on the device or `away` from it."""

    class Checkpoint(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, block: nn.Module, *inputs: Tensor | None) -> Any:
            ctx.block, ctx.inputs = block, inputs
            with torch.no_grad():
                outputs = block(*inputs)
            if away and inputs[0] is not None:
                ctx.size = inputs[0].untyped_storage().nbytes()
                ledger.resize(inputs[0], 0)
            return outputs

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            x, *shared = ctx.inputs
            if away:
                ledger.resize(x, ctx.size)
            x = x.detach().requires_grad_(True)
            with torch.enable_grad():
                outputs = ctx.block(x, *shared)
            pairs = zip(outputs if isinstance(outputs, tuple) else (outputs,), grads, strict=True)
            wanted = [(out, grad) for out, grad in pairs if out.requires_grad]
            torch.autograd.backward([out for out, _ in wanted], [grad for _, grad in wanted])
            ctx.inputs = None
            return (None, x.grad, *(None for _ in shared))

    return lambda block, x, *shared: Checkpoint.apply(block, x, *shared)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _without_data(gpu: bool, bf16: bool) -> Iterator[None]:
    """Inside, tensors have no data, and operations are those of the device."""
    before = dispatch.mode()
    with contextlib.ExitStack() as stack:
        stack.callback(dispatch.choose, before, torch.device("meta"))
        if gpu and dispatch.installed():
            from model.kernels.launch import describing

            dispatch.choose("triton", torch.device("meta"))
            stack.enter_context(describing())
        else:
            dispatch.choose("reference", torch.device("cpu"))
        if gpu:
            stack.enter_context(mock.patch.object(rows, "_attention_mask", lambda *_: None))
        stack.enter_context(FakeTensorMode())
        yield


def expected_selection(config: ModelConfig) -> float:
    """Share of tokens that attend where an architecture selects them, as it is budgeted; 1 elsewhere."""
    return config.taipan.budget
