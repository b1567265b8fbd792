"""Normalisation of text, and the rules that reject what is no text.

:func:`normalise` is the definition of "a document's text": hashes, splits, byte counts and the tokenizer's exact
round trip all refer to its result. It is idempotent, so that text which was cleaned elsewhere keeps its hash.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

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


@dataclass
class CleaningReport:
    """How many documents came in, and what became of them; `rejected` counts by rule, in the rules' order.

    `duplicates` are exact ones (the same normalised text); bytes are UTF-8 bytes, of raw text for `bytes_read` and of
    normalised text for `bytes_kept`. `documents_read` = `documents_kept` + `duplicates` + all rejected.
    """

    documents_read: int = 0
    bytes_read: int = 0
    documents_kept: int = 0
    bytes_kept: int = 0
    duplicates: int = 0
    rejected: dict[str, int] = field(default_factory=dict)


class Cleaner:
    """Applies :func:`normalise` and the rules to one document after the other, and keeps the count.

    The first rule that rejects a document gets the count. Deduplication happens later, where equal documents meet;
    the caller then adds to ``report.duplicates``, ``documents_kept`` and ``bytes_kept``.
    """

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules
        self.report = CleaningReport(rejected={rule.name: 0 for rule in rules})

    def clean(self, raw: str) -> str | None:
        """The normalised text, or None if a rule rejects it."""
        self.report.documents_read += 1
        self.report.bytes_read += utf8_length(raw)
        text = normalise(raw)
        for rule in self.rules:
            if rule.rejects(raw, text):
                self.report.rejected[rule.name] += 1
                return None
        return text


def utf8_length(text: str) -> int:
    """Bytes of the UTF-8 form; lone surrogates, which have none, count three (like the U+FFFD they become)."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
