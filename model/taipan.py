"""The selective attention of Taipan: few tokens attend, and what they find refines the stream itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.cache import Memory, WindowKeyValues
from model.config import ModelConfig
from model.init import fill
from model.mixer import ROWS, Mixer
from model.rows import Rows
from model.selective import Selection, gumbel_noise, select, selected_attention


class SelectiveAttention(Mixer):
    """Attention of the tokens that a gate selects, over a sliding window (arXiv 2410.18572, Eq. 1 to 5).

        s = W_g x + b_g                                     two logits a token: pass by, attend
        m = argmax(s + Gumbel noise)                        straight-through; without noise outside training
        o = W_o Attention(W_q x, W_k x, W_v x)              selected tokens only; keys and values of all tokens
        [1 - a, a] = softmax(s)
        h <- (1 - a) h + a o    where m = 1,  h elsewhere   the mixer gives the difference to h

    x is the stream h, normed. Only queries are chosen; there are no positional embeddings. The attention is plain
    (products over sqrt(head_dim)), with the heads of the model.

    The paper leaves open, and here is chosen: the gate is one linear map; the norm comes before gate and projections,
    while the mix is of the stream as it is; noise is for training alone, so that evaluation and generation take the
    likelier choice (`taipan.noise_steps` leads there); a token that passed by gives the gate no gradient but the
    budget's, since what attention would have found was not computed. Heads, `taipan.tau` and the weight of the budget
    loss are settings.

    Attributes:
        noise: factor on the noise, which the trained model sets step by step.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        settings = config.taipan
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.window, self.tau, self.noise = settings.window, settings.tau, settings.noise_at(0)
        self.qkv = nn.Linear(config.d_model, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.gate_weight = nn.Parameter(torch.empty(2, config.d_model))
        self.gate_bias = nn.Parameter(torch.empty(2))

    def forward(  # type: ignore[override]  # the block needs the choice too, and hands in the stream
        self, x: Tensor, rows: Rows = ROWS, memory: Memory | None = None, stream: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Let the selected tokens of x attend.

        Args:
            x: the stream, normed [B, T, d_model].
            rows, memory: see `Mixer`.
            stream: the stream as it is [B, T, d_model]; None is x.

        Returns:
            What is added to the stream [B, T, d_model], exactly 0 where a token passes by, and `Selection.weight`
            [B, T].
        """
        stream = x if stream is None else stream
        selection = self._select(x)
        queries, keys, values = (
            self.qkv(x)
            .unflatten(-1, (self.heads + 2 * self.kv_heads, self.head_dim))
            .split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        )
        past = None
        if isinstance(memory, WindowKeyValues):
            seen = [t.transpose(1, 2) for t in memory.append(keys.transpose(1, 2), values.transpose(1, 2))]
            before = seen[0].shape[1] - x.shape[1]  # no positions: in any order the past is the same
            past = (seen[0][:, :before], seen[1][:, :before])
            keys, values = (t[:, before:] for t in seen)
        mixed = selected_attention(queries, keys, values, selection.mask, self.window, rows.starts, past)
        found = self.out(mixed.flatten(2).to(x.dtype))
        share = (selection.weight * selection.alpha).unsqueeze(-1)
        refinement = torch.where(selection.mask.unsqueeze(-1), share * (found - stream), 0)
        return refinement.to(stream.dtype), selection.weight

    def empty_memory(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """The keys and values of a window, selected or not."""
        shape = (batch, self.kv_heads, self.window, self.head_dim)
        keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        return WindowKeyValues(keys, values)

    def initialise(self, config: ModelConfig) -> None:
        """Each token attends with the probability of the budget: no weight, and a bias that says so.

        From a start near 0 or 1 the gate would see hardly a gradient.
        """
        kv_width = self.kv_heads * self.head_dim
        queries, keys, values = self.qkv.weight.split([self.heads * self.head_dim, kv_width, kv_width])
        fill(queries, config, "in")
        fill(keys, config, "in")
        fill(values, config, "value")
        fill(self.out.weight, config, "out")
        budget = config.taipan.budget
        nn.init.zeros_(self.gate_weight)
        nn.init.zeros_(self.gate_bias)
        nn.init.constant_(self.gate_bias[1:], math.log(budget) - math.log1p(-budget))

    def _select(self, x: Tensor) -> Selection:
        """The choice, in float32: half precision would move it."""
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.to(wide), self.gate_weight.to(wide), self.gate_bias.to(wide))
        # Global draws, as dropout's: the trainer seeds them by step and rank, and recomputation restores them.
        noise = self.noise * gumbel_noise(logits.shape, x.device) if self.training and self.noise else None
        return select(logits, self.tau, noise)
