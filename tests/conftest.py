"""Settings that hold for the whole suite: seeded, without deadlines, one thread."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("WANDB_MODE", "offline")

import torch
from hypothesis import settings

# Examples are the same in every run, and a slow machine is not a failure.
settings.register_profile("pha", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("pha")
torch.set_num_threads(1)
