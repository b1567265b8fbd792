"""What a user can choose when a dataset is built.

All models are frozen and refuse unknown keys: a misspelt option must not silently build another dataset.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from data_pipeline.quality import RULES
from data_pipeline.sources.config import SourceConfig

#: 256 byte pieces, unknown, the separator, newline and tab: a vocabulary below this cannot exist.
SMALLEST_VOCABULARY = 260


class TokenizerConfig(BaseModel):
    """How the SentencePiece tokenizer of a dataset comes about.

    ``vocab_size`` counts every piece, the 256 byte pieces included. ``sample_bytes`` bounds the UTF-8 bytes of
    training text that are held in memory while the tokenizer is trained. ``model`` names an existing SentencePiece
    model, or the folder of GPT-2's ``encoder.json`` and ``vocab.bpe``, to use instead of training one; the other fields
    are then ignored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    kind: Literal["bpe", "unigram"] = "bpe"
    vocab_size: Annotated[int, Field(ge=SMALLEST_VOCABULARY, le=1_000_000)] = 4096
    sample_bytes: Annotated[int, Field(gt=0)] = 20_000_000
    model: Path | None = None


class NearDedupConfig(BaseModel):
    """Near-duplicate removal: `threshold` is the Jaccard similarity of word 5-grams from which documents count as
    the same, estimated from `permutations` hashes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: Annotated[float, Field(ge=0.5, le=1.0)] = 0.75
    permutations: Annotated[int, Field(ge=16, le=512)] = 128


class DecontaminateConfig(BaseModel):
    """Removal of training documents that share a run of `ngram` words with a held-out split, or with one of the
    further `files` (sources as elsewhere: paths or globs)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ngram: Annotated[int, Field(ge=5, le=100)] = 13
    files: tuple[str, ...] = ()


class CleanConfig(BaseModel):
    """Which documents are kept, and what is changed in them.

    Attributes:
        preset: where the values that are not given come from: ``none`` asks no rule beyond the length, ``basic`` also
            rejects binary data, ``web`` adds every rule of :mod:`data_pipeline.quality`, drops boilerplate lines and
            masks e-mail and IP addresses (English prose from the web: C4, Gopher, FineWeb).
        rules: by name of a quality rule, a threshold, true for the published one or false to switch it off.
        languages: ISO 639-1 codes to keep; empty keeps all.
        min_language_probability: what the language filter asks for (FineWeb: 0.65).
        boilerplate_lines: drop short lines about JavaScript, cookies and policies.
        pii: what to mask: ``email``, ``ip``.
        near_dedup, decontaminate: off unless given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["none", "basic", "web"] = "basic"
    rules: dict[str, bool | float] = Field(default_factory=dict)
    languages: tuple[str, ...] = ()
    min_language_probability: Annotated[float, Field(ge=0.0, le=1.0)] = 0.65
    boilerplate_lines: bool | None = None
    pii: tuple[Literal["email", "ip"], ...] | None = None
    near_dedup: NearDedupConfig | None = None
    decontaminate: DecontaminateConfig | None = None

    @field_validator("rules")
    @classmethod
    def _rules_exist(cls, rules: dict[str, bool | float]) -> dict[str, bool | float]:
        for name in rules:
            if name not in RULES:
                near = difflib.get_close_matches(name, RULES, n=1) or sorted(RULES)
                raise ValueError(f"there is no quality rule {name!r}: did you mean {' or '.join(near)}?")
        return rules

    def thresholds(self) -> dict[str, float]:
        """The threshold of every quality rule that is on, by name."""
        wanted: dict[str, bool | float] = dict.fromkeys(RULES, self.preset == "web") | self.rules
        return {
            name: RULES[name].threshold if value is True else float(value)
            for name, value in wanted.items()
            if value is not False
        }

    @property
    def not_text_limit(self) -> float | None:
        """Share of unprintable characters from which a document is rejected; None if that is not asked."""
        return None if self.preset == "none" else 0.3

    @property
    def drops_lines(self) -> bool:
        """Whether boilerplate lines go."""
        return self.preset == "web" if self.boilerplate_lines is None else self.boilerplate_lines

    @property
    def masks(self) -> tuple[Literal["email", "ip"], ...]:
        """The kinds of addresses that are masked."""
        if self.pii is None:
            return ("email", "ip") if self.preset == "web" else ()
        return self.pii


class BuildConfig(BaseModel):
    """Everything that decides what a built dataset contains.

    Attributes:
        sources: paths, globs or names, or :class:`~data_pipeline.sources.config.SourceConfig` where a source needs
            settings of its own. Their order does not matter and a source that is named twice counts once.
        output: directory of the dataset; it must not exist, or must hold the very same build.
        validation_fraction, test_fraction: share of the documents, chosen by hash; 0 leaves the split out.
            OpenWebText's customary value is 0.005 for each.
        block_tokens: tokens of a block, reached by whole documents. None chooses about 64k, and less for a small
            corpus, so that train has about 512 blocks to shuffle, but never less than 1,024 tokens.
        shard_bytes: a tar shard is closed once it is this large.
        min_characters: shorter documents (after normalisation) are rejected.
        clean: rules, masks, near-duplicate removal and decontamination.
        salt: changes which documents fall into which split, and nothing else.
        max_source_bytes: take at most this many bytes of raw text (UTF-8) from each source, in the source's own
            order, so that a trial on a large corpus reads only its beginning.
        part_bytes: how much one task reads or encodes, roughly: what a killed build loses a process, and the memory
            of a process beside the tokenizer. It decides nothing about the result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: Annotated[tuple[str | SourceConfig, ...], Field(min_length=1)]
    output: Path
    tokenizer: TokenizerConfig = TokenizerConfig()
    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    test_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    block_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    shard_bytes: Annotated[int, Field(ge=1)] = 64 * 1024 * 1024
    min_characters: Annotated[int, Field(ge=1)] = 64
    clean: CleanConfig = CleanConfig()
    salt: Annotated[int, Field(ge=0, lt=2**64)] = 0
    max_source_bytes: Annotated[int, Field(gt=0)] | None = None
    part_bytes: Annotated[int, Field(gt=0)] = 64 * 1024 * 1024

    @model_validator(mode="after")
    def _train_is_left(self) -> BuildConfig:
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise ValueError("validation_fraction + test_fraction must be below 1, or nothing is left to train on")
        return self

    @model_validator(mode="after")
    def _one_setting_a_source(self) -> BuildConfig:
        specs = [source.spec for source in self.canonical_sources()]
        for spec in specs:
            if specs.count(spec) > 1:
                raise ValueError(f"source {spec!r} is named twice with different settings: name it once")
        return self

    def canonical_sources(self) -> tuple[SourceConfig, ...]:
        """The sources sorted and without repetition: the form that decides the content of the dataset."""
        return tuple(sorted({SourceConfig.of(source) for source in self.sources}, key=lambda source: source.spec))
