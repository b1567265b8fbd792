"""One dataset, or several of one tokenizer that are read as a mixture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from data_pipeline.dataset import Dataset, Split
from data_pipeline.errors import DataError
from data_pipeline.schema import canonical_hash
from data_pipeline.tokenizer import Tokenizer


class Corpus:
    """Open datasets by name. Raises DataError when there is none, or when their tokenizers differ."""

    def __init__(self, datasets: Mapping[str, Dataset]) -> None:
        if not datasets:
            raise DataError("a corpus needs at least one dataset.")
        self.datasets = dict(datasets)
        self._first = next(iter(self.datasets.values()))
        for name, dataset in self.datasets.items():
            if dataset.tokenizer_hash != self._first.tokenizer_hash:
                raise DataError(
                    f"the mixture's dataset {name!r} ({dataset.path}) has another tokenizer than {self._first.path}: "
                    "build it with that tokenizer (pha data build --tokenizer)."
                )

    @classmethod
    def open(cls, paths: Mapping[str, Path]) -> Corpus:
        """Check and open the datasets in these directories. Raises DataError."""
        return cls({name: Dataset.open(path) for name, path in paths.items()})

    @property
    def path(self) -> Path:
        """The first dataset's directory, for messages."""
        return self._first.path

    @property
    def hash(self) -> str:
        """SHA-256 of the content; of a single dataset its own."""
        if len(self.datasets) == 1:
            return self._first.hash
        return canonical_hash({name: dataset.hash for name, dataset in self.datasets.items()})

    @property
    def tokenizer_hash(self) -> str:
        """SHA-256 of the one tokenizer's file."""
        return self._first.tokenizer_hash

    @property
    def vocab_size(self) -> int:
        """Pieces of the tokenizer."""
        return self._first.vocab_size

    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises DataError if its file has changed."""
        return self._first.tokenizer()

    def splits(self, name: str) -> dict[str, Split]:
        """That split of every dataset. Raises DataError if one has none."""
        return {key: dataset.split(name) for key, dataset in self.datasets.items()}
