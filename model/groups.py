"""Which parameters weight decay pulls towards zero."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share an optimizer setting.

    Attributes:
        name: "decay" or "no_decay".
        parameters: pairs of the parameter's name in the model, and the parameter.
        decay: whether weight decay applies.
    """

    name: str
    parameters: list[tuple[str, nn.Parameter]]
    decay: bool


def _decays(owner: nn.Module, name: str) -> bool:
    return isinstance(owner, nn.Linear) and name == "weight"


def parameter_groups(model: nn.Module) -> list[ParameterGroup]:
    """Split the parameters into those with and without weight decay; each is in exactly one group.

    The rule: weights of `nn.Linear`, the maps between channels, decay; nothing else does. The module that owns a
    parameter decides by how it holds it: what must not decay is a parameter of its own. That is the embedding,
    norms, biases, mixing scalars and gates, temperatures, the taps of short convolutions, and everything about a
    recurrence's time (A_log, dt_bias, D, decays, gate biases). Their zero is no neutral value: mixing scalars at 0
    are uniform mixing, a decay of lambda = 0 is a memory of one token.
    """
    decay: list[tuple[str, nn.Parameter]] = []
    no_decay: list[tuple[str, nn.Parameter]] = []
    for prefix, owner in model.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            group = decay if _decays(owner, name) else no_decay
            group.append((f"{prefix}.{name}" if prefix else name, parameter))
    return [ParameterGroup("decay", decay, True), ParameterGroup("no_decay", no_decay, False)]
