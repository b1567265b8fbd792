"""Taking up another model's weights, and distilling softmax attention into Hedgehog's features.

Hedgehog's second step (arXiv 2402.04347, Section 4.2) teaches the feature maps of a converted Transformer to give
the attention weights that its softmax gives. All else is frozen, so teacher and student share every weight but
the maps, and one model is both: it runs with softmax attention, and in each layer the features are compared with it
on the queries and keys at hand. Then everything is fine-tuned with the features in place.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.errors import ModelError
from model.hedgehog_attention import HedgehogAttention
from model.lm import LanguageModel
from model.loss import IGNORE
from model.rows import describe_rows

FEATURE_MAPS = ("query_map", "key_map")
"""The submodules of `HedgehogAttention` that a Transformer does not have."""

SCORES = ("n_heads", "n_kv_heads", "rope_theta", "norm_eps", "cosine", "embedding_scale")
"""What a Transformer and its student must agree on although the shapes of their weights may not show it."""


@torch.no_grad()
def adopt(model: LanguageModel, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights of a trained model of `config` into a model, bit by bit.

    The models are of the same names and shapes; or a `hedgehog` model takes up those of a `transformer`, and its
    feature maps stay as they are.

    Raises:
        ModelError: the weights do not fit; the sentence names the first that does not.
    """
    converts = (config.architecture, model.config.architecture) == ("transformer", "hedgehog")
    if converts:
        _require_equal_scores(config, model.config)
        weights = {name.replace("attention.", "hedgehog.", 1): value for name, value in weights.items()}
    own = model.state_dict()
    kept = {name for name in own if converts and any(part in name for part in FEATURE_MAPS)}
    for name in sorted((own.keys() - kept) | weights.keys()):
        ours, theirs = (list(where[name].shape) if name in where else "missing" for where in (own, weights))
        if ours != theirs:
            raise ModelError(
                f"The weights to start from do not fit the model: {name} is {theirs} there and {ours} here; give the "
                "model the architecture and sizes of the one it starts from (a hedgehog may start from a transformer)."
            )
    for name, value in weights.items():
        own[name].copy_(value)


def _require_equal_scores(teacher: ModelConfig, student: ModelConfig) -> None:
    values = {name: (getattr(teacher, name), getattr(student, name)) for name in SCORES}
    values["attention.positions"] = (teacher.attention.positions, student.attention.positions)
    if student.cosine:
        values["cosine_scale_max"] = (teacher.cosine_scale_max, student.cosine_scale_max)
    for name, (theirs, ours) in values.items():
        if theirs != ours:
            raise ModelError(
                f"{name} is {theirs} in the Transformer to start from and {ours} in this model; make them equal, so "
                "that its weights mean the same here."
            )
    if teacher.attention.window is not None:
        raise ModelError(
            "The Transformer to start from sees a window (attention.window), and linear attention has none; start "
            "from one that sees all of a document."
        )


class AttentionMatching(nn.Module):
    """A `hedgehog` model whose feature maps alone learn, to give the weights of its softmax attention.

    Calls have the form of `LanguageModel`'s with labels. In training mode they give the mismatch; in evaluation mode
    they are the model's own, with the features as they are. The maps' gradients stay within their layer. Dropout is
    off, as it would spoil the example. Both attention matrices [B, heads, T, T] are kept for each layer until the
    backward pass: use short rows or small micro-batches.

    Args:
        model: it is changed: frozen but for the maps.

    Raises:
        ModelError: the model is no `hedgehog`.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        if model.config.architecture != "hedgehog":
            raise ModelError(
                f"Only the feature maps of a hedgehog can be distilled, and the model is a {model.config.architecture}."
            )
        self.model = model.requires_grad_(False)
        self._mixers = [module for module in model.modules() if isinstance(module, HedgehogAttention)]
        for mixer in self._mixers:
            for part in FEATURE_MAPS:
                mixer.get_submodule(part).requires_grad_(True)
        self.train()

    def forward(self, tokens: Tensor, documents: Tensor, labels: Tensor) -> Tensor:
        """A sum over the tokens with a label, in nats: of the matching loss, the mean over layers and heads.

        In evaluation mode it is that of the cross-entropy, as in `LanguageModel`.
        """
        if not self.training:
            return self.model(tokens, documents, labels)
        rows = describe_rows(self.model.config, tokens, documents, 0)
        x = self.model.embedding(tokens)
        for block in self.model.layers:
            out = block(x, *rows)
            assert isinstance(out, Tensor)
            x = out
        losses = []
        for mixer in self._mixers:
            assert mixer.mismatch is not None
            losses.append(mixer.mismatch)
            mixer.mismatch = None  # it holds the layer's graph
        return torch.stack(losses).mean(dim=0).masked_fill(labels == IGNORE, 0).sum()

    def train(self, mode: bool = True) -> AttentionMatching:
        """The model inside stays as at inference, but for what it attends with: see above."""
        super().train(mode)
        self.model.eval()
        for mixer in self._mixers:
            mixer.imitates = mode
        return self
