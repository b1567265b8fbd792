"""A trained model out of a run directory, without DeepSpeed: for evaluation, generation and reports."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from data_pipeline.corpus import Corpus
from data_pipeline.dataset import Dataset
from data_pipeline.tokenizer import Tokenizer
from model.generate import generate
from model.lm import LanguageModel
from pretrain.checkpoint import Checkpoint, CheckpointStore, newest
from pretrain.config import RunConfig
from pretrain.data import open_corpus
from pretrain.data_plan import combine
from pretrain.distributed import World
from pretrain.errors import RunError
from pretrain.evaluate import Evaluation, accumulate, batches_of, summarise
from pretrain.files import write_json
from pretrain.rundir import RunDirectory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A model as a checkpoint of a run left it."""

    config: RunConfig
    checkpoint: Checkpoint
    corpus: Corpus
    model: LanguageModel
    device: torch.device

    def evaluate(self, split_name: str, sequences: int | None = None, batch: int | None = None) -> Evaluation:
        """The model's figures on `train`, `validation` or `test`; raises DataError for another name."""
        settings = self.config.eval.model_copy(
            update={"sequences": sequences, "batch": batch or self.config.eval.batch}
        )

        def loss_sum(tokens: Tensor, labels: Tensor, documents: Tensor) -> Tensor:
            loss: Tensor = self.model(tokens, documents, labels)
            return loss

        parts = {}
        for name, split in self.corpus.splits(split_name).items():
            with torch.no_grad():
                batches = batches_of(split, self.config.data.longest, settings, World())
                nats, tokens = accumulate(loss_sum, batches, self.device)
            parts[name] = summarise(split_name, split, nats, tokens)
        return combine(self.config, split_name, parts)

    @property
    def dataset(self) -> Dataset:
        """The dataset of a run that has one. Raises RunError for a mixture."""
        if len(self.corpus.datasets) > 1:
            raise RunError("This run reads a mixture; what you ask for needs a single dataset (leave --baselines out).")
        return next(iter(self.corpus.datasets.values()))

    def generate(
        self,
        prompt: str,
        tokens: int,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> str:
        """The prompt continued by up to `tokens` tokens, until the model ends the document."""
        tokenizer: Tokenizer = self.corpus.tokenizer()
        start = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(prompt)]], device=self.device)
        generator = torch.Generator(self.device).manual_seed(seed)
        with torch.no_grad():
            out = generate(
                self.model,
                start,
                tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                stop_token=tokenizer.bos_id,
                generator=generator,
                vocabulary=tokenizer.vocab_size,
            )
        ids = [token for token in [*start[0, 1:].tolist(), *out[0]] if token != tokenizer.bos_id]
        return tokenizer.decode(ids)


def load(run: Path, step: int | None = None, window: int | None = None) -> Trained:
    """The model of a run's newest (or the given) checkpoint, verified first.

    `window` replaces the model's `attention.window`, so that its memory is bounded; it has no weights of its own.
    Raises RunError when there is no such checkpoint or its files are damaged, DataError when its dataset is gone.
    """
    directory = RunDirectory(run)
    config = directory.read_config()
    checkpoint = newest(directory.checkpoints) if step is None else _at_step(directory, step)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus = open_corpus(config.data)
    if corpus.tokenizer_hash != checkpoint.info().tokenizer_hash:
        raise RunError(
            f"The dataset {corpus.path} has another tokenizer than the one {checkpoint.path} was trained with; "
            "restore the dataset that the run was started on."
        )
    if corpus.hash != checkpoint.info().dataset_hash:
        log.warning("%s is not the text that %s was trained on; the figures are of other text.", corpus.path, run)
    if window is not None:
        attention = config.model.attention.model_copy(update={"window": window})
        config = config.model_copy(update={"model": config.model.model_copy(update={"attention": attention})})
    model = LanguageModel(config.model).to(device)
    model.load_state_dict(load_file(checkpoint.weights, device=str(device)))
    return Trained(config, checkpoint, corpus, model.eval(), device)


def write_sample(config: RunConfig) -> Path:
    """Lets the newest checkpoint continue `logging.sample_prompt`, and writes `sample.json`; returns its path.

    A sample of the same checkpoint and prompt is not made again. Raises RunError when there is no checkpoint.
    """
    directory, settings = RunDirectory(config.run_dir), config.logging
    checkpoint = newest(directory.checkpoints)
    wanted = {"prompt": settings.sample_prompt, "tokens": settings.sample_tokens, "step": checkpoint.step}
    wanted |= {"temperature": 0.8, "top_p": 0.95, "seed": 0}
    if directory.sample.is_file():
        made = json.loads(directory.sample.read_text(encoding="utf-8"))
        if all(made.get(key) == value for key, value in wanted.items()):
            return directory.sample
    text = load(config.run_dir).generate(
        settings.sample_prompt, settings.sample_tokens, temperature=0.8, top_p=0.95, seed=0
    )
    write_json(directory.sample, {**wanted, "continuation": text.removeprefix(settings.sample_prompt)})
    return directory.sample


def weights_bytes(model: LanguageModel) -> bytes:
    """The model alone as an fp32 safetensors file; the parameters must be whole (ZeRO 3: gathered)."""
    return serialise({name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()})


def _at_step(directory: RunDirectory, step: int) -> Checkpoint:
    for checkpoint in CheckpointStore(directory.checkpoints).all():
        if checkpoint.step == step:
            problems = checkpoint.problems()
            if problems:
                raise RunError(f"The checkpoint {checkpoint.path} is damaged: {'; '.join(problems)}.")
            return checkpoint
    raise RunError(f"{directory.checkpoints} has no checkpoint of step {step}; `pha status` lists them.")
