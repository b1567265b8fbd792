"""`pha` that writes down what each rank was given to train on, and the audit of it.

Every token but the first of a split's stream is predicted exactly once an epoch (docs/data-order.md), so the labels of
an epoch's sequences, counted by token, are the split's own counts but for the one token that comes first.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.batch import Batch
from data_pipeline.dataset import Dataset
from data_pipeline.loader import Loader
from data_pipeline.order import Order
from data_pipeline.pack import IGNORE
from pretrain import cli
from pretrain.exits import start_mark

LEDGER = "PHA_LEDGER"


def main() -> None:
    folder = Path(os.environ[LEDGER])
    folder.mkdir(parents=True, exist_ok=True)
    given = Loader.__next__

    def next_batch(self: Loader) -> Batch:
        step = self._step
        batch = given(self)
        first = batch.first_sequence + self._rank * len(batch.labels)
        rows = {first + row: labels.tolist() for row, labels in enumerate(batch.labels)}
        with (folder / f"rank-{self._rank}.jsonl").open("a") as file:
            # one write: a kill leaves a whole line, or the last one torn
            file.write(json.dumps([step, rows, start_mark()]) + "\n")
        return batch

    Loader.__next__ = next_batch  # type: ignore[method-assign]
    cli.main()


def read(folder: Path, starts: Sequence[str] = ("",)) -> dict[int, dict[int, list[int]]]:
    """step → sequence → its labels. Of a step that was taken again after a fault, what was given last.

    `starts` are the marks of a supervised run's starts, in order: an early one's ranks may live on beside a later's.
    """
    steps: dict[int, dict[str, dict[str, dict[int, list[int]]]]] = {}
    for path in sorted(folder.glob("rank-*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                step, rows, mark = json.loads(line)
            except json.JSONDecodeError:  # the line that a kill tore
                continue
            own = steps.setdefault(step, {}).setdefault(mark, {})
            own[path.stem] = {int(number): labels for number, labels in rows.items()}
    found: dict[int, dict[int, list[int]]] = {}
    for step, by_start in steps.items():
        given = found.setdefault(step, {})
        for rows in by_start[max(by_start, key=starts.index)].values():
            assert not given.keys() & rows.keys(), f"two ranks were given the same sequence in step {step}"
            given.update(rows)
    return found


def problems(
    folder: Path, dataset: Path, steps: int, batch: int, epoch: int, starts: Sequence[str] = ("",)
) -> list[str]:
    """What was not given exactly once: by the numbers of sequences, and by the tokens of each whole epoch."""
    given = read(folder, starts)
    numbers = Counter(number for step in given if step < steps for number in given[step])
    wrong = [n for n in range(steps * batch) if numbers[n] != 1] + [n for n in numbers if n >= steps * batch]
    if wrong:
        return [f"{len(wrong)} sequences were not given exactly once, for example {wrong[:5]}"]
    labels = {number: row for rows in given.values() for number, row in rows.items()}
    found = []
    with Dataset.open(dataset) as opened:
        split = opened.split("train")
        whole = np.concatenate([split.read_block(block) for block in range(len(split.blocks))])
    expected = np.bincount(whole, minlength=opened.vocab_size)
    for number in range(steps * batch // epoch):
        rows = np.array([labels[k] for k in range(number * epoch, (number + 1) * epoch)])
        seen = np.bincount(rows[rows != IGNORE], minlength=len(expected))
        missing = expected - seen
        if missing.sum() != 1 or missing.max() != 1 or missing.min() != 0:
            found.append(f"epoch {number}: {int(np.abs(missing).sum())} tokens more or less than the split has")
    return found


def epoch(dataset: Path, seq_len: int, batch: int) -> int:
    """Sequences in an epoch of the training split."""
    with Dataset.open(dataset) as opened:
        tokens = opened.split("train").block_tokens
        return Order(tokens, [(0, seq_len)], batch, seed=0, shuffle=True).sequences_per_epoch


if __name__ == "__main__":
    main()
