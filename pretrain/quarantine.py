"""The run's list of damaged blocks that were left out, with `data.on_damage=quarantine`."""

from __future__ import annotations

import json
import time
from pathlib import Path

from data_pipeline.corpus import Corpus


class QuarantineList:
    """`quarantine.jsonl` of a run: one JSON object a damaged block, written when a rank first meets it.

    Every rank meets the blocks of its own rows and appends with one write, so lines never mix; a block that is met
    again, in a later epoch or after a resume, is not listed again. A block is met when it is read, some hundred rows
    ahead of the step that uses it, hence `noted_at_step`. What is left out depends on the stored bytes alone, so the
    list explains the batches and never decides them.
    """

    def __init__(self, path: Path, corpus: Corpus, rank: int) -> None:
        self._path, self._corpus, self._rank = path, corpus, rank
        self._known = {(record["dataset"], record["split"], record["block"]) for record in read_quarantine(path)}

    def note(self, step: int) -> None:
        """Append what has been met since the last call. Raises OSError."""
        for name, dataset in self._corpus.datasets.items():
            for split_name in dataset.split_names:
                split = dataset.split(split_name)
                if split.has_quarantined:
                    self._append(step, name, split.quarantined)

    def _append(self, step: int, dataset: str, records: list[dict[str, object]]) -> None:
        for record in records:
            key = (dataset, record["split"], record["block"])
            if key not in self._known:
                self._known.add(key)
                line = {"dataset": dataset, **record, "noted_at_step": step, "rank": self._rank, "time": time.time()}
                with self._path.open("ab") as file:
                    torn = file.tell() > 0 and self._path.read_bytes()[-1:] != b"\n"  # by a kill in mid-write
                    file.write(b"\n" * torn + json.dumps(line).encode() + b"\n")


def read_quarantine(path: Path) -> list[dict[str, object]]:
    """The records of a run's list, each block once; nothing if there is none or a line is not whole yet."""
    if not path.exists():
        return []
    found: dict[tuple[object, ...], dict[str, object]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
            key = (record["dataset"], record["split"], record["block"])
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
        found.setdefault(key, record)
    return list(found.values())
