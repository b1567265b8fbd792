"""Text in, batches of token ids out: sources, cleaning, tokenizer, shards, order, packing and loading.

The flow is ``sources -> clean -> split -> tokenizer -> shards`` when a dataset is built (:mod:`data_pipeline.build`)
and ``dataset -> order -> pack -> loader`` when it is read. Importing this package loads only the standard library,
so that a command line that merely mentions it stays fast; import the module that you need.
"""

from __future__ import annotations

import os

# Before the library is imported anywhere: it reads this once, and then neither runs commands nor unpickles.
os.environ["WDS_SECURE"] = "1"

from data_pipeline.errors import DataError

__all__ = ["DataError"]
