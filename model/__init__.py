"""Hybrid language models: the Parallel Hybrid Architecture (arXiv 2606.16093) and its parts.

Importing this package does not import torch, so that command line tools on login nodes stay fast; the torch
model is `model.lm.LanguageModel`.
"""

from __future__ import annotations

from model.config import ModelConfig
from model.errors import ModelError

__all__ = ["ModelConfig", "ModelError"]
