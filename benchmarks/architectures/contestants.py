"""What is compared: presets, and variants of them."""

from __future__ import annotations

from dataclasses import dataclass

from model.presets import preset

DEFAULT = (
    "pha-tiny",
    "pha-tiny:composition=sequential",
    "pha-tiny:gss.kind=ssd",
    "pha-tiny:gss.kind=mehta",
    "pha-tiny:attention.window=256",
    "transformer-tiny",
    "gss-tiny",
    "gss-hybrid-tiny",
    "h3-tiny",
    "h3-hybrid-tiny",
    "hedgehog-tiny",
    "mamba2-tiny",
    "taipan-tiny",
)
"""All architectures, each at about 1.9 million parameters, and PHA's variants."""


@dataclass(frozen=True)
class Contestant:
    """A model as the command names it: `PRESET` or `PRESET:key=value,key=value`, keys without `model.`."""

    name: str

    @property
    def overrides(self) -> list[str]:
        """What `pha train` is told beside the protocol."""
        named, _, changes = self.name.partition(":")
        return [f"model.preset={named}", *(f"model.{change}" for change in changes.split(",") if change)]

    @property
    def probe(self) -> str:
        """The same architecture and variant as `pha probe` names it, which has sizes of its own."""
        named, _, changes = self.name.partition(":")
        return ":".join(filter(None, (preset(named).architecture, changes)))

    @property
    def folder(self) -> str:
        """A name for its runs' directories."""
        return "".join(c if c.isalnum() or c in "-." else "_" for c in self.name)
