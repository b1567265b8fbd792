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
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from model import architectures, rows
from model.config import ModelConfig
from model.embedding import TiedEmbedding
from model.kernels import dispatch
from model.lm import LanguageModel
from pretrain.config import RunConfig
from pretrain.deepspeed_config import batch_split, deepspeed_config
from pretrain.ledger import Ledger
from pretrain.optim import parameter_groups
from pretrain.zero3_plan import Scattered
from pretrain.zero_plan import Backend, Divided, DividedEarly, Parameters, Whole

KINDS = ("weights", "gradients", "optimizer", "buffers", "activations", "head", "batch")
"""The parts, in the order in which they are shown."""


@dataclass(frozen=True)
class Memory:
    """What a rank holds at its fullest moment, beyond what the process holds before the model is made.

    Attributes:
        peak: bytes.
        phase: the moment: "start", "training" or "validation".
        parts: kind → bytes at that moment; they add up to `peak`.
        most: kind → the most bytes of it at any moment.
        phases: phase → the most bytes in it.
        kept: bytes that one micro-batch's forward pass leaves for its backward pass.
        state: bytes that stay from step to step.
        operations: of one micro-batch, forward and backward.
        moved: bytes that these read and write.
        parameters: trained numbers.
        low_bytes: bytes of all gradients as they travel, which autocast may narrow.
        stage: of ZeRO, as it is computed with.
        micro_batches: of a rank in a step.
    """

    peak: int
    phase: str
    parts: dict[str, int]
    most: dict[str, int]
    phases: dict[str, int]
    kept: int
    state: int
    operations: int
    moved: int
    parameters: int
    low_bytes: int
    stage: int
    micro_batches: int


def plan_memory(config: RunConfig, world: int, *, gpu: bool, bf16: bool, document_tokens: float = 1000.0) -> Memory:
    """Runs a step of this run, of which the vocabulary is known, on tensors without data.

    Args:
        config: the run, for its largest batch and its longest sequences.
        world: ranks.
        gpu: whether for a GPU or for a CPU.
        bf16: whether matrix products are in bf16.
        document_tokens: of a document, on average: some mixers cut rows where documents begin.

    Raises:
        RunError: the batch does not divide, or keys under deepspeed clash with ours.
    """
    micro, count = batch_split(config, world)
    length = config.data.longest
    documents = 1 + round(length / document_tokens)
    ledger = Ledger(_asked_for(config.model, micro, length, documents), micro * documents)
    with _without_data(gpu, ledger), ledger:
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
        most={kind: ledger.most[kind] for kind in KINDS},
        phases={name: most for name, (most, _) in ledger.peaks.items()},
        kept=rank.kept,
        state=state,
        operations=rank.operations,
        moved=rank.moved,
        parameters=rank.zero.total,
        low_bytes=rank.low_bytes,
        stage=rank.stage,
        micro_batches=count,
    )


class _Rank:
    """A model with its optimizer under DeepSpeed, and the loop's calls, on tensors without data."""

    def __init__(self, config: RunConfig, world: int, ledger: Ledger, gpu: bool, bf16: bool) -> None:
        self.config, self.ledger, self.bf16 = config, ledger, bf16 and gpu
        self.kept = self.operations = self.moved = 0
        settings = deepspeed_config(config, world, bf16=bf16, device="cuda" if gpu else "cpu")
        zero = settings["zero_optimization"]
        self.stage = int(zero["stage"])
        with ledger.counting("weights"):
            self.model = LanguageModel(config.model)
        groups = [group["params"] for group in parameter_groups(self.model, config.optim)]
        linear = [module for module in self.model.modules() if type(module) is nn.Linear]
        narrow = frozenset(p for module in linear for p in module.parameters()) if bf16 else frozenset()
        parameters = Parameters(groups, narrow)
        backend = Backend(reserves=gpu, copies=not gpu and world > 1, low=2 if bf16 else 4)
        self.low_bytes = sum(p.numel() * (2 if p in parameters.narrow else 4) for p in parameters.all())
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

    def train(self, micro: int, count: int, share: int) -> None:
        """A step of `count` micro-batches of `micro` sequences each, of a rank's `share` of the batch."""
        ledger = self.ledger
        ledger.phase = "training"
        self.model.train()
        self.model.watch_branches(True)  # as in a step that is logged
        batch = self._batch(share)
        for index in range(count):
            before = ledger.parts["activations"] + ledger.parts["head"], ledger.operations, ledger.moved
            loss = self._loss([part[index * micro : (index + 1) * micro] for part in batch])
            self.kept = ledger.parts["activations"] + ledger.parts["head"] - before[0]
            (loss * 0.5).backward()
            self.zero.end_backward()
            del loss
            self.operations, self.moved = ledger.operations - before[1], ledger.moved - before[2]
        self.zero.step()

    def validate(self) -> None:
        """A batch of the validation."""
        self.ledger.phase = "validation"
        self.model.eval()
        with torch.no_grad():
            self._loss(self._batch(self.config.eval.batch))

    def _batch(self, count: int) -> list[Tensor]:
        """Inputs, labels and document numbers of so many sequences."""
        with self.ledger.counting("batch"):
            kinds = (torch.int64, torch.int64, torch.int32)
            return [torch.zeros(count, self.config.data.longest, dtype=kind) for kind in kinds]

    def _loss(self, batch: list[Tensor]) -> Tensor:
        tokens, labels, documents = batch
        if isinstance(self.zero, Scattered):
            self.zero.begin_forward()
        with self._autocast():
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

    return lambda block, x, *shared: Checkpoint.apply(block, x, *shared)


@contextlib.contextmanager
def _without_data(gpu: bool, ledger: Ledger) -> Iterator[None]:
    """Inside, tensors have no data, and operations are those of the device."""
    before = dispatch.mode()
    with contextlib.ExitStack() as stack:
        stack.callback(dispatch.choose, before, torch.device("meta"))
        if gpu and dispatch.installed():
            from model.kernels.launch import Launch, watching

            def count(launch: Launch) -> None:
                ledger.count(launch.arguments.values())

            dispatch.choose("triton", torch.device("meta"))
            stack.enter_context(watching(count))
        else:
            dispatch.choose("reference", torch.device("cpu"))
        if gpu:
            stack.enter_context(_replaced(rows, "_attention_mask", lambda *_: None))
            stack.enter_context(_AsOnGPU())
        stack.enter_context(FakeTensorMode())
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, an attribute is another."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class _AsOnGPU(TorchFunctionMode):
    """Operations that PyTorch composes of others on a CPU, and has whole on a GPU: they keep less there."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Puts the GPU's form in place of the CPU's."""
        kwargs = kwargs or {}
        if func is functional.dropout:
            x, p, training = (*args, *(kwargs[name] for name in ("p", "training") if name in kwargs))[:3]
            return torch.native_dropout(x, p, True)[0] if training and p else x
        if func is functional.rms_norm:
            return torch.ops.aten._fused_rms_norm(*args, **kwargs)[0]
        return func(*args, **kwargs)


def _asked_for(config: ModelConfig, micro: int, length: int, documents: int) -> int | None:
    """What the mixers of a model ask of the data of a micro-batch; None where none of them asks."""
    parts = architectures.parts(config)
    if "selective" in parts:
        return _selected(config.taipan.budget, micro, length)
    if "h3" in parts or "mehta" in parts or config.gss.kind == "mehta":
        # the last chunk of the fullest row: chunks begin with documents, of which each fills half a chunk less
        chunk = config.h3.chunk if "h3" in parts else config.mehta.chunk
        return math.ceil(length / chunk + documents / 2) - 1
    return None


def _selected(budget: float, rows_: int, length: int) -> int:
    """Queries of a tile that selective attention gathers: what its budget lets attend, in the row with most of them.

    The number of a row is binomial; the largest of n such numbers lies about sqrt(2 ln n) deviations above the mean.
    """
    tile = min(256, length)
    spread = math.sqrt(tile * budget * (1 - budget) * 2 * math.log(rows_))
    return min(tile, round(tile * budget + spread))
