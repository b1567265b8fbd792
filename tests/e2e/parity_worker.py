"""One rank of the parity test: trains the same few steps under each setting and prints the losses as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from data_pipeline.corpus import Corpus
from data_pipeline.loader import Loader
from pretrain import config_file
from pretrain.data import resolve
from pretrain.deepspeed_config import batch_split
from pretrain.distributed import Ranks, discover
from pretrain.engine import Engine
from pretrain.loop import Trainer
from pretrain.signals import StopFlag
from pretrain.state import TrainState


class Recorder:
    """Keeps what each step was; neither validates nor saves."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def after_step(self, result, throughput) -> None:
        self.steps.append((result.loss, result.grad_norm))

    def validate(self) -> bool:
        return True

    def save(self) -> None:
        pass


def train(config, dataset, ranks) -> list[tuple[float, float]]:
    recorder, state = Recorder(), TrainState()
    engine = Engine(config, ranks)
    loader = Loader(
        dataset.splits("train")["data"],
        seq_len=config.data.seq_len,
        global_batch=config.train.global_batch,
        lanes=config.data.lanes,
        seed=0,
        rank=ranks.world.rank,
        world=ranks.world.size,
    )
    micro, _ = batch_split(config, ranks.world.size)
    Trainer(config, ranks, engine, loader, state, recorder, StopFlag(), micro).run()
    loader.close()
    return recorder.steps


def main(config_path: str, output: str, *settings: str) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(discover(os.environ), 120)
    results = {}
    for overrides in settings:
        config = config_file.load(Path(config_path), overrides.split())
        dataset = Corpus.open(config.data.paths)
        results[overrides] = train(resolve(config, dataset), dataset, ranks)
    if ranks.world.is_main:
        Path(output).write_text(json.dumps(results))
    ranks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
