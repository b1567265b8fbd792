"""The one place that knows DeepSpeed: it turns a model and a config into forward, backward, step, save, load."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.distill import AttentionMatching
from model.kernels import dispatch
from model.lm import LanguageModel
from pretrain.config import RunConfig
from pretrain.deepspeed_config import deepspeed_config, zero_stage
from pretrain.distributed import Ranks, peer_lost_words
from pretrain.elastic import give_optimizer
from pretrain.errors import PeerLost, RunError, lost_a_peer
from pretrain.extensions import compiling
from pretrain.hardware import require_compiler
from pretrain.initial import Initial
from pretrain.optim import parameter_groups

log = logging.getLogger(__name__)

ZERO_TAG = "zero"
"""The folder inside a checkpoint that holds DeepSpeed's files."""


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told which accelerator to use and to keep its chatter out of the terminal."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # DeepSpeed's shared-memory all-reduce for CPUs compiles itself for most of a minute at first use and needs
    # a compiler; gloo does the same sums without either.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    warnings.filterwarnings("ignore", message=".*is deprecated. Please use `torch.distributed", category=FutureWarning)
    return deepspeed


def uses_bf16(config: RunConfig, device: torch.device) -> bool:
    """Whether the run computes in bf16: asked for, or `auto` on a GPU that has it."""
    if config.train.precision != "auto":
        return config.train.precision == "bf16"
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


class _IntoMemory:
    """DeepSpeed's writer of checkpoint files, but for the writing."""

    def __init__(self, writer: Any, files: dict[Path, bytes]) -> None:
        self._writer, self._files = writer, files

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def save(self, state_dict: Any, path: str) -> None:
        """Keep the bytes that would be in the file."""
        buffer = io.BytesIO()
        torch.save(state_dict, buffer)
        self._files[Path(path)] = buffer.getvalue()


class Engine:
    """A model under DeepSpeed. All methods are collective: every rank calls them in the same order."""

    def __init__(self, config: RunConfig, ranks: Ranks, initial: Initial | None = None) -> None:
        """Builds the model and hands it to DeepSpeed.

        The weights are the same on every rank: from `train.seed`, or those of `initial`.
        """
        self.config, self.ranks = config, ranks
        self.zero_stage = zero_stage(config, ranks.world.size)
        self.device = ranks.device
        self._deepspeed = import_deepspeed(self.device)
        self.kernels = dispatch.choose(config.train.kernels, self.device)
        torch.manual_seed(config.train.seed)
        self._model = model = LanguageModel(config.model).to(self.device)
        if initial is not None:
            initial.give_to(model)
        trained = AttentionMatching(model) if config.train.objective == "distill" else model
        self.parameter_count = sum(p.numel() for p in model.parameters())
        groups = parameter_groups(model, config.optim)
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.optimized = [names[parameter] for group in groups for parameter in group["params"]]
        optim = config.optim
        self._groups = [
            {"weight_decay": group["weight_decay"], "betas": optim.betas, "eps": optim.eps} for group in groups
        ]
        settings = deepspeed_config(
            config, ranks.world.size, bf16=uses_bf16(config, self.device), device=self.device.type
        )
        try:
            self._engine, self._optimizer, *_ = self._deepspeed.initialize(
                model=trained,
                optimizer=self._adamw(groups),
                config=settings,
                dist_init_required=False,
            )
        except (ValueError, AssertionError, RuntimeError) as error:
            if not config.deepspeed:
                raise
            reason = " ".join(str(error).split())[:300]
            raise RunError(f"DeepSpeed refuses the keys under deepspeed: ({reason}); mend or remove them.") from error
        if ranks.world.size == 1:
            self._engine.enable_backward_allreduce = False  # a copy of all gradients there and back, for nobody
        self._norm, self._discarded = float("nan"), False
        if self.zero_stage == 0:
            self._optimizer.register_step_pre_hook(self._clip)
        self._set_recompute(model, settings)
        if config.train.compile:
            require_compiler(self.device)
            model.compile_blocks()

    @property
    def module(self) -> LanguageModel:
        """The model inside; under ZeRO 3 its parameters are whole only within `gathered`."""
        return self._model

    def loss_sum(self, tokens: Tensor, labels: Tensor, documents: Tensor) -> Tensor:
        """The summed loss [nats] of a micro-batch by `train.objective`; all inputs [B, T] on the device."""
        loss: Tensor = self._engine(tokens, documents, labels)
        return loss

    def backward(self, loss_sum: Tensor, global_tokens: float) -> None:
        """Adds the gradient of `loss_sum / global_tokens`, where the count is over all ranks and micro-batches.

        DeepSpeed averages gradients over ranks, so the loss is multiplied by their number first: what the
        optimizer sees is the gradient of the mean over tokens, however they fell on ranks.
        """
        self._engine.backward(loss_sum * (self.ranks.world.size / max(global_tokens, 1.0)))

    def begin_step(self, step: int) -> None:
        """Tells the model which step (from 0) it is trained in: auxiliary losses and noise are functions of it."""
        self.module.begin_step(step)
        self.module.watch_branches(self.config.logs_step(step + 1))

    def branch_rms(self) -> list[list[float]]:
        """How large the branches' outputs were in each layer in this step's last micro-batch, mean over ranks."""
        own = self.module.branch_rms()
        total = self.ranks.sum(*own.flatten().tolist()) if own.numel() else []
        mean = torch.tensor(total, dtype=torch.float64) / self.ranks.world.size
        return [[round(value, 5) for value in layer] for layer in mean.reshape(own.shape).tolist()]

    def selected_shares(self) -> list[float]:
        """Share of all ranks' tokens that attended in each selective layer since the last call.

        That is in this step, or in what was evaluated after it; empty where the architecture selects nothing.
        """
        if self.module.budget is None:
            return []
        *attended, tokens = self.ranks.sum(*self.module.budget.reading())
        return [count / max(tokens, 1.0) for count in attended]

    def step(self, learning_rate: float, *, discard: bool = False) -> float:
        """One optimizer step at this rate; returns the gradient's norm before clipping.

        Where the norm is not finite, or with `discard`, no rank takes the step: the gradients are dropped.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        with self._leaving_out(discard):
            self._engine.step()  # with ZeRO, DeepSpeed leaves out what is not finite, by the norm over all ranks
        if self.zero_stage == 0:
            return self._norm
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    @contextlib.contextmanager
    def _leaving_out(self, discard: bool) -> Iterator[None]:
        """Inside, with `discard`, a step finds a norm that is not finite, and cleans up as it does after such."""
        self._discarded = discard
        # DeepSpeed's gradients lie elsewhere at each stage; the norm that it judges them by is the same for all ranks.
        judge = {0: "", 3: "_get_norm_groups"}.get(self.zero_stage, "scaled_global_norm")
        if discard and judge:
            infinite = torch.tensor(torch.inf, device=self.device)
            found = [infinite] if judge == "_get_norm_groups" else infinite
            setattr(self._optimizer, judge, lambda *_, **__: found)
        try:
            yield
        finally:
            if discard and judge:
                delattr(self._optimizer, judge)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Dropout off and no gradients inside; training mode again after."""
        self._engine.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._engine.train()

    @contextlib.contextmanager
    def gathered(self, parameters: list[nn.Parameter] | None = None) -> Iterator[None]:
        """Inside, these parameters (or all) are whole on every rank, whatever the ZeRO stage."""
        if self.zero_stage < 3:
            yield
            return
        chosen = list(self.module.parameters()) if parameters is None else parameters
        with self._deepspeed.zero.GatheredParameters(chosen):
            yield

    def mixing_weights(self) -> list[list[float]]:
        """The weights of the model's `mixed_branches` in each layer; empty where nothing is mixed."""
        scalars = [p for name, p in self.module.named_parameters() if name.endswith("mixing.p")]
        with self.gathered(scalars):
            weights: list[list[float]] = self.module.mixing_weights().tolist()
        return weights

    def snapshot(self, directory: Path) -> dict[Path, bytes]:
        """This rank's files under `directory`/zero as DeepSpeed makes them, in memory: training may go on at once."""
        # Without this key DeepSpeed's universal conversion, which a change of world size needs, refuses.
        client_state = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
        files: dict[Path, bytes] = {}
        writer = self._engine.checkpoint_engine
        self._engine.checkpoint_engine = _IntoMemory(writer, files)
        try:
            self._engine.save_checkpoint(str(directory), tag=ZERO_TAG, client_state=client_state, save_latest=False)
        finally:
            self._engine.checkpoint_engine = writer
        return files

    def load(self, directory: Path) -> None:
        """Loads what `save` wrote, at the same world size and stage.

        Raises RunError when DeepSpeed refuses, PeerLost when another rank is gone.
        """
        try:
            path, _ = self._engine.load_checkpoint(str(directory), tag=ZERO_TAG)
        except Exception as error:
            if lost_a_peer(error):
                raise PeerLost(peer_lost_words(error)) from error
            reason = str(error).strip().splitlines()
            raise RunError(
                f"DeepSpeed could not load the checkpoint {directory}: {reason[0] if reason else type(error).__name__}."
            ) from error
        if path is None:
            raise RunError(f"DeepSpeed found nothing to load in {directory}.")
        # What was loaded brings its old settings along; the config's are the ones that count.
        for group, settings in zip(self._engine.optimizer.param_groups, self._groups, strict=True):
            group.update(settings)

    def take_up(self, file: Path) -> None:
        """Takes the optimizer's state from a file of `pretrain.elastic`; the weights were given at the start."""
        parameters = dict(self.module.named_parameters())
        give_optimizer(file, parameters, self._optimizer, self.zero_stage)

    def _adamw(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        optim = self.config.optim
        options: dict[str, Any] = {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps}
        if optim.implementation == "deepspeed_cpu":
            return self._cpu_adamw(groups, options)
        return torch.optim.AdamW(groups, fused=True, **options)

    def _cpu_adamw(self, groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.Optimizer:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        try:
            with compiling():
                optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
        except Exception as error:
            raise RunError(
                f"DeepSpeedCPUAdam could not be compiled ({str(error).splitlines()[0]}); install g++ and ninja, "
                "or set optim.implementation=fused."
            ) from error
        return optimizer

    def _clip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        limit = self.config.optim.clip or float("inf")
        self._norm = float(nn.utils.clip_grad_norm_(parameters, limit))
        if self._discarded or not math.isfinite(self._norm):
            self._norm = float("nan")
            for parameter in parameters:
                parameter.grad = None  # the optimizer leaves such parameters alone

    def _set_recompute(self, model: LanguageModel, settings: dict[str, Any]) -> None:
        recompute = self.config.train.recompute
        if recompute.mode == "none":
            return
        on_host = bool(settings["activation_checkpointing"]["cpu_checkpointing"])
        if recompute.mode == "offload" and not on_host:
            log.info("Activations are computed again; there is no device to offload them from.")
        checkpointing = self._deepspeed.checkpointing
        checkpointing.configure(None, checkpoint_in_cpu=on_host)

        def checkpoint(block: nn.Module, x: Tensor, *shared: Tensor | None) -> Tensor:
            # Offloading empties the inputs' storage; what all blocks share (masks, rotary tables) must stay.
            for tensor in shared:
                if tensor is not None:
                    tensor.no_checkpointing = True  # type: ignore[attr-defined]  # DeepSpeed's mark
            out: Tensor = checkpointing.checkpoint(block, x, *shared)
            return out

        model.set_recompute(checkpoint, recompute.every)
