"""Normalisation of text, and the composition of edits and rules that clean a document.

:func:`normalise` is the definition of "a document's text": hashes, splits, byte counts and the tokenizer's exact
round trip all refer to its result. It is idempotent, so that text which was cleaned elsewhere keeps its hash.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from data_pipeline.config import CleanConfig
from data_pipeline.documents import Document
from data_pipeline.language import check_languages, detect_language
from data_pipeline.pii import mask_pii
from data_pipeline.quality import RULES, Measure, Shape, drop_boilerplate_lines

#: Characters that separate lines somewhere (form feed, vertical tab, NEL, LS, PS, file/group/record separators); all
#: become a newline, because deleting them would glue two words together.
_LINE_BREAKS = re.compile("\r\n?|[\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")
#: Control characters but newline and tab, and the byte order mark: they carry no text.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_BLANK_LINES = re.compile("\n{4,}")
#: What decoding binary data as text leaves behind: controls, replacement characters, lone surrogates, private use.
_NOT_TEXT = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\uf8ff\ufffd-\uffff]")

#: Largest share of characters that may be unprintable before a document is called `not_text`.
NOT_TEXT_LIMIT = 0.3
#: Heads of rejected documents that a report keeps for each rule, and their length in characters.
SAMPLES, SAMPLE_CHARACTERS = 3, 100

#: Changes a text, and says how often by kind.
Edit = Callable[[str], tuple[str, Mapping[str, int]]]


def normalise(text: str) -> str:
    """The canonical form of a text: Unicode NFC, ``\\n`` newlines, no control characters, no trailing spaces.

    Runs of three or more blank lines become two; space around the whole text goes. Lone surrogates, which no UTF-8
    file can hold, become U+FFFD. Idempotent: controls are deleted *before* NFC, since a deletion can bring a letter
    and its combining mark together, and no later step changes characters other than white space.
    """
    text = _LINE_BREAKS.sub("\n", text)
    text = _CONTROLS.sub("", text)
    text = _SURROGATES.sub("\ufffd", text)
    text = unicodedata.normalize("NFC", text)
    # One rstrip a line, not a regular expression: `\s+$` is quadratic on a long run of spaces inside a line.
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n\n", text).strip()


@dataclass(frozen=True)
class Rule:
    """A named reason to reject a document: ``rejects(raw, normalised)`` is true for a document to drop."""

    name: str
    rejects: Callable[[str, str], bool]


def too_short(min_characters: int) -> Rule:
    """Reject documents of fewer than `min_characters` characters after normalisation (empty ones among them)."""
    return Rule("too_short", lambda raw, normalised: len(normalised) < min_characters)


def not_text(limit: float = NOT_TEXT_LIMIT) -> Rule:
    """Reject documents of which more than `limit` of the raw characters are unprintable or replacement characters.

    It looks at the raw text because normalisation removes the very characters that give binary data away.
    """

    def rejects(raw: str, normalised: str) -> bool:
        if _NOT_TEXT.search(raw) is None:
            return False
        return len(raw) - len(_NOT_TEXT.sub("", raw)) > limit * len(raw)

    return Rule("not_text", rejects)


def quality_rules(thresholds: Mapping[str, float]) -> tuple[Rule, ...]:
    """The rules of :data:`data_pipeline.quality.RULES` that `thresholds` names, with these thresholds.

    They share the parts of a document that they measure, so that each is computed once.
    """
    last = [Shape("")]

    def shape(text: str) -> Shape:
        if last[0].text is not text:
            last[0] = Shape(text)
        return last[0]

    def rule(name: str, measure: Measure, threshold: float) -> Rule:
        return Rule(name, lambda raw, normalised: measure.rejects(shape(normalised), threshold))

    return tuple(rule(name, measure, thresholds[name]) for name, measure in RULES.items() if name in thresholds)


def wrong_language(languages: tuple[str, ...], min_probability: float) -> Rule:
    """Reject documents that are not in one of `languages` (ISO 639-1 codes) with at least this probability.

    Raises DataError for a code that the model does not know.
    """
    check_languages(languages)

    def rejects(raw: str, normalised: str) -> bool:
        language, probability = detect_language(normalised)
        return language not in languages or probability < min_probability

    return Rule("language", rejects)


def rules_of(config: CleanConfig, min_characters: int) -> tuple[Rule, ...]:
    """All rules that a configuration switches on, in the order in which they are asked. Raises DataError."""
    rules = [too_short(min_characters)]
    if config.not_text_limit is not None:
        rules.append(not_text(config.not_text_limit))
    if config.languages:
        rules.append(wrong_language(config.languages, config.min_language_probability))
    return (*rules, *quality_rules(config.thresholds()))


def edits_of(config: CleanConfig) -> tuple[Edit, ...]:
    """All changes to a text that a configuration switches on."""
    edits: list[Edit] = []
    if config.drops_lines:
        edits.append(lambda text: _named("boilerplate_lines", drop_boilerplate_lines(text)))
    if kinds := config.masks:
        edits.append(lambda text: mask_pii(text, kinds))
    return tuple(edits)


def _named(name: str, result: tuple[str, int]) -> tuple[str, dict[str, int]]:
    return result[0], {name: result[1]}


@dataclass
class CleaningReport:
    """How many documents came in, and what became of them; `rejected` counts by rule, in the rules' order,
    and then by the rules of readers (:mod:`data_pipeline.sources.warc`), as far as they met any.

    `duplicates` are exact ones (the same normalised text); bytes are UTF-8 bytes, of raw text for `bytes_read` and
    `bytes_rejected` (by rule) and of normalised text for `bytes_kept`. `documents_read` = `documents_kept` +
    `duplicates` + all rejected. `samples` holds by rule the heads of a few rejected documents, and `edits` how many
    lines were dropped and addresses masked. Samples are chosen by hash, so that no order of documents changes them.
    """

    documents_read: int = 0
    bytes_read: int = 0
    documents_kept: int = 0
    bytes_kept: int = 0
    duplicates: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    bytes_rejected: dict[str, int] = field(default_factory=dict)
    samples: dict[str, list[str]] = field(default_factory=dict)
    edits: dict[str, int] = field(default_factory=dict)

    def reject(self, rule: str, text: str, size: int) -> None:
        """Count a document of `size` raw bytes as rejected by `rule`."""
        self.rejected[rule] = self.rejected.get(rule, 0) + 1
        self.bytes_rejected[rule] = self.bytes_rejected.get(rule, 0) + size
        head = _SURROGATES.sub("\ufffd", text[:SAMPLE_CHARACTERS])
        self.samples[rule] = _fewest([*self.samples.get(rule, ()), head])

    def merge(self, other: CleaningReport) -> None:
        """Add the counts of `other`, which cleaned other documents; the result does not depend on the order."""
        for name in ("documents_read", "bytes_read", "documents_kept", "bytes_kept", "duplicates"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for ours, theirs in (
            (self.rejected, other.rejected),
            (self.bytes_rejected, other.bytes_rejected),
            (self.edits, other.edits),
        ):
            for name, count in theirs.items():
                ours[name] = ours.get(name, 0) + count
        for rule, heads in other.samples.items():
            self.samples[rule] = _fewest([*self.samples.get(rule, ()), *heads])


def _fewest(heads: list[str]) -> list[str]:
    """The distinct heads with the smallest hashes."""
    return sorted(set(heads), key=lambda head: (zlib.crc32(head.encode("utf-8")), head))[:SAMPLES]


class Cleaner:
    """Applies :func:`normalise`, the edits and the rules to one document after the other, and keeps the count.

    The first rule that rejects a document gets the count. Deduplication happens later, where equal documents meet;
    the caller then adds to ``report.duplicates``, ``documents_kept`` and ``bytes_kept``. An edited text is normalised
    again, so that the result is in canonical form whatever the edits leave.
    """

    def __init__(self, rules: tuple[Rule, ...], edits: tuple[Edit, ...] = ()) -> None:
        self.rules, self.edits = rules, edits
        self.report = CleaningReport(
            rejected={rule.name: 0 for rule in rules}, bytes_rejected={rule.name: 0 for rule in rules}
        )

    @classmethod
    def of(cls, config: CleanConfig, min_characters: int) -> Cleaner:
        """The cleaner that a configuration describes. Raises DataError for an unknown language."""
        return cls(rules_of(config, min_characters), edits_of(config))

    def refuse(self, document: Document) -> None:
        """Count a document that its reader has rejected; where it has no text, its id is the sample."""
        assert document.rejected is not None
        size = utf8_length(document.text)
        self.report.documents_read += 1
        self.report.bytes_read += size
        self.report.reject(document.rejected, document.text or document.id, size)

    def clean(self, raw: str) -> str | None:
        """The normalised and edited text, or None if a rule rejects it."""
        size = utf8_length(raw)
        self.report.documents_read += 1
        self.report.bytes_read += size
        text = normalise(raw)
        for edit in self.edits:
            edited, counts = edit(text)
            for name, count in counts.items():
                self.report.edits[name] = self.report.edits.get(name, 0) + count
            if edited != text:
                text = normalise(edited)
        for rule in self.rules:
            if rule.rejects(raw, text):
                self.report.reject(rule.name, text, size)
                return None
        return text


def utf8_length(text: str) -> int:
    """Bytes of the UTF-8 form; lone surrogates, which have none, count three (like the U+FFFD they become)."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
