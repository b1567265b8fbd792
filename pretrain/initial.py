"""Where a run's first weights come from when another run made them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from data_pipeline.corpus import Corpus
from model.config import ModelConfig
from model.distill import adopt
from model.lm import LanguageModel
from pretrain.checkpoint import Checkpoint, newest
from pretrain.errors import RunError
from pretrain.rundir import RunDirectory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Initial:
    """The newest checkpoint of another run, verified."""

    model: ModelConfig
    checkpoint: Checkpoint

    @classmethod
    def find(cls, run: Path, dataset: Corpus) -> Initial:
        """The weights that the run at `run` left last.

        Raises RunError when it has no complete checkpoint, or its tokenizer is not that of the data.
        """
        directory = RunDirectory(run)
        config = directory.read_config()
        checkpoint = newest(directory.checkpoints)
        if checkpoint.info().tokenizer_hash != dataset.tokenizer_hash:
            raise RunError(
                f"{run} was trained with another tokenizer than that of {dataset.path}, so that its weights mean other "
                "tokens; choose data of the same tokenizer, or leave out train.init_from."
            )
        return cls(config.model, checkpoint)

    def give_to(self, model: LanguageModel) -> None:
        """Copies the weights into the model. Raises ModelError when they do not fit."""
        adopt(model, self.model, load_file(self.checkpoint.weights))
        log.info("The weights are those of %s.", self.checkpoint.path)
