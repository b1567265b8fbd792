"""Hybrid language models: the Parallel Hybrid Architecture (arXiv 2606.16093) and its parts.

Importing this package imports neither torch nor pydantic, so that `pha --help` is instant; the torch model is
`model.lm.LanguageModel`, its configuration `model.config.ModelConfig`.
"""

from __future__ import annotations

from model.errors import ModelError

__all__ = ["ModelError"]
