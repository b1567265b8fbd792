"""Rules that tell prose from boilerplate, lists and repetition, with the thresholds of the papers that found them.

Sources: C4 (Raffel et al. 2020, section 2.2), Gopher (Rae et al. 2021, appendix A.1.1 and table A1), FineWeb (Penedo et
al. 2024, section 3.5). Each measure is a pure function of a :class:`Shape`; :data:`RULES` gives each its threshold and
the side on which a document is rejected. Words are separated by white space: for languages without spaces, switch off
the rules that count words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from data_pipeline.ngrams import ngram_hashes

_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_BULLETS = ("•", "‣", "▶", "◀", "◦", "■", "□", "▪", "▫", "●", "○", "–", "-", "*")
_PUNCTUATION = (".", "?", "!", '"', "'", "”", "’", "…", ":", ";", ")", "。", "？", "！")
_PARAGRAPH = re.compile(r"\n\s*\n")
_STRIP = ".,;:!?\"'“”‘’()[]"
#: C4 drops lines that ask for a browser feature or quote a policy.
_BOILERPLATE = re.compile(
    r"\bjavascript\b.*\b(?:enable|disable|support|browser|turn|require)|\b(?:enable|disable|support|browser|turn|require)"
    r"\w*\b.*\bjavascript\b|terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies",
    re.IGNORECASE,
)
#: Every match of the pattern holds one of these.
_BOILERPLATE_WORDS = ("javascript", "cookie", "terms of use", "privacy policy")
#: A boilerplate line is short; a long one is a paragraph of prose that mentions the subject (characters).
_BOILERPLATE_LENGTH = 200


class Shape:
    """The parts of a normalised text that the measures share, each computed once and on demand."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def lines(self) -> list[str]:
        """The lines with something on them, without the space around."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What blank lines separate."""
        return [part for part in map(str.strip, _PARAGRAPH.split(self.text)) if part]

    @cached_property
    def words(self) -> list[str]:
        """What white space separates."""
        return self.text.split()

    @cached_property
    def numbers(self) -> np.ndarray:
        """Each word as the number of its first place among the distinct words, uint64 [words]."""
        known: dict[str, int] = {}
        return np.fromiter((known.setdefault(word, len(known)) for word in self.words), np.uint64, len(self.words))

    @cached_property
    def recurring(self) -> np.ndarray:
        """Where a 5-gram of words begins that occurs more than once: places in ascending order, int64.

        A longer n-gram that occurs twice begins at such a place too, and prose has few of them.
        """
        hashes = ngram_hashes(self.numbers, 5)
        ordered = np.sort(hashes)
        again = ordered[1:][ordered[1:] == ordered[:-1]]
        return np.flatnonzero(np.isin(hashes, again)) if len(again) else np.zeros(0, np.int64)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Characters of each word, int64 [words]."""
        return np.fromiter(map(len, self.words), np.int64, len(self.words))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _repeated(parts: list[str]) -> list[str]:
    """All occurrences after the first."""
    return [part for part, count in Counter(parts).items() for _ in range(count - 1)]


def duplicate_lines(shape: Shape) -> float:
    """Share of the lines that repeat an earlier one. Gopher: at most 0.30."""
    return _share(len(_repeated(shape.lines)), len(shape.lines))


def duplicate_line_characters(shape: Shape) -> float:
    """Share of the lines' characters that lie in repetitions. Gopher: at most 0.20 (FineWeb: 0.10)."""
    return _share(sum(map(len, _repeated(shape.lines))), sum(map(len, shape.lines)))


def duplicate_paragraphs(shape: Shape) -> float:
    """Share of the paragraphs that repeat an earlier one. Gopher: at most 0.30."""
    return _share(len(_repeated(shape.paragraphs)), len(shape.paragraphs))


def duplicate_paragraph_characters(shape: Shape) -> float:
    """Share of the paragraphs' characters that lie in repetitions. Gopher: at most 0.20."""
    return _share(sum(map(len, _repeated(shape.paragraphs))), sum(map(len, shape.paragraphs)))


def top_ngram_characters(shape: Shape, n: int) -> float:
    """Share of the words' characters in the most frequent n-gram (ties: the longest). Gopher: 0.20, 0.18, 0.16 for
    n = 2, 3, 4. An n-gram that occurs once counts 0; where one overlaps itself ("a a a") the share stops at 1."""
    if len(shape.words) < n:
        return 0.0
    hashes = ngram_hashes(shape.numbers, n)
    values, counts = np.unique(hashes, return_counts=True)
    most = int(counts.max())
    if most == 1:
        return 0.0
    ends = np.concatenate(([0], np.cumsum(shape.lengths)))
    starts = np.flatnonzero(np.isin(hashes, values[counts == most]))
    return min(1.0, _share(most * int((ends[starts + n] - ends[starts]).max()), int(ends[-1])))


def duplicate_ngram_characters(shape: Shape, n: int) -> float:
    """Share of the words' characters covered by n-grams that repeat an earlier one, overlaps counted once. Gopher:
    0.15, 0.14, 0.13, 0.12, 0.11, 0.10 for n = 5 to 10."""
    if len(shape.words) <= n:
        return 0.0
    places = shape.recurring if n >= 5 else np.arange(len(shape.words))
    places = places[places <= len(shape.words) - n]
    again = np.ones(len(places), bool)
    again[np.unique(ngram_hashes(shape.numbers, n, places), return_index=True)[1]] = False
    if not again.any():
        return 0.0
    changes = np.zeros(len(shape.words) + 1, np.int64)
    changes[places[again]] += 1
    changes[places[again] + n] -= 1
    covered = np.cumsum(changes)[:-1] > 0
    return _share(int(shape.lengths[covered].sum()), int(shape.lengths.sum()))


def word_count(shape: Shape) -> float:
    """Words of the document. Gopher: 50 to 100,000."""
    return len(shape.words)


def mean_word_length(shape: Shape) -> float:
    """Characters a word. Gopher: 3 to 10."""
    return _share(int(shape.lengths.sum()), len(shape.words))


def symbol_ratio(shape: Shape) -> float:
    """Hash signs, or ellipses if those are more, by words. Gopher: at most 0.10."""
    ellipses = shape.text.count("...") + shape.text.count("…")
    return _share(max(shape.text.count("#"), ellipses), len(shape.words))


def bullet_lines(shape: Shape) -> float:
    """Share of the lines that start with a bullet. Gopher: at most 0.90."""
    return _share(sum(line.startswith(_BULLETS) for line in shape.lines), len(shape.lines))


def ellipsis_lines(shape: Shape) -> float:
    """Share of the lines that end with an ellipsis. Gopher: at most 0.30."""
    return _share(sum(line.endswith(("...", "…")) for line in shape.lines), len(shape.lines))


def alphabetic_words(shape: Shape) -> float:
    """Share of the words with at least one letter. Gopher: at least 0.80."""
    return _share(sum(word.isalpha() or any(map(str.isalpha, word)) for word in shape.words), len(shape.words))


def stop_words(shape: Shape) -> float:
    """Distinct words among Gopher's eight English stop words (the, be, to, of, and, that, have, with): at least 2."""
    found: set[str] = set()
    for word in shape.words:
        if (lower := word.lower().strip(_STRIP)) in _STOP_WORDS:
            found.add(lower)
            if len(found) == len(_STOP_WORDS):
                break
    return len(found)


def punctuated_lines(shape: Shape) -> float:
    """Share of the lines that end with punctuation. FineWeb: at least 0.12."""
    return _share(sum(line.endswith(_PUNCTUATION) for line in shape.lines), len(shape.lines))


def short_lines(shape: Shape) -> float:
    """Share of the lines of under 30 characters. FineWeb: at most 0.67."""
    return _share(sum(len(line) < 30 for line in shape.lines), len(shape.lines))


def lorem_ipsum(shape: Shape) -> float:
    """Occurrences of the placeholder text. C4: none."""
    return shape.text.lower().count("lorem ipsum")


def curly_braces(shape: Shape) -> float:
    """Opening curly braces, a sign of source code. C4: none. It also rejects prose that quotes code."""
    return shape.text.count("{")


@dataclass(frozen=True)
class Measure:
    """A rule: a document is rejected when `of` its shape lies beyond `threshold`, above or (``below``) under it."""

    of: Callable[[Shape], float]
    threshold: float
    below: bool = False

    def rejects(self, shape: Shape, threshold: float) -> bool:
        """Whether the document lies on the wrong side of `threshold`; exactly at it, it is kept."""
        value = self.of(shape)
        return value < threshold if self.below else value > threshold


#: Name → measure with its published threshold, in the order in which they are asked: cheap ones first.
RULES: dict[str, Measure] = {
    "lorem_ipsum": Measure(lorem_ipsum, 0),
    "curly_braces": Measure(curly_braces, 0),
    "min_words": Measure(word_count, 50, below=True),
    "max_words": Measure(word_count, 100_000),
    "min_mean_word_length": Measure(mean_word_length, 3, below=True),
    "max_mean_word_length": Measure(mean_word_length, 10),
    "symbol_ratio": Measure(symbol_ratio, 0.10),
    "bullet_lines": Measure(bullet_lines, 0.90),
    "ellipsis_lines": Measure(ellipsis_lines, 0.30),
    "punctuated_lines": Measure(punctuated_lines, 0.12, below=True),
    "short_lines": Measure(short_lines, 0.67),
    "stop_words": Measure(stop_words, 2, below=True),
    "alphabetic_words": Measure(alphabetic_words, 0.80, below=True),
    "duplicate_lines": Measure(duplicate_lines, 0.30),
    "duplicate_line_characters": Measure(duplicate_line_characters, 0.20),
    "duplicate_paragraphs": Measure(duplicate_paragraphs, 0.30),
    "duplicate_paragraph_characters": Measure(duplicate_paragraph_characters, 0.20),
    **{
        f"top_{n}gram_characters": Measure(partial(top_ngram_characters, n=n), threshold)
        for n, threshold in ((2, 0.20), (3, 0.18), (4, 0.16))
    },
    **{
        f"duplicate_{n}gram_characters": Measure(partial(duplicate_ngram_characters, n=n), round(0.20 - n / 100, 2))
        for n in range(5, 11)
    },
}


def drop_boilerplate_lines(text: str) -> tuple[str, int]:
    """`text` without its short lines about JavaScript, cookies and policies (C4), and how many those were.

    Idempotent. C4 drops every line with the word; only lines under 200 characters go here, so that an article about
    the language keeps its paragraphs.
    """
    lower = text.lower()
    if not any(word in lower for word in _BOILERPLATE_WORDS):  # the pattern alone would cost most of the time
        return text, 0
    lines = text.split("\n")
    kept = [line for line in lines if len(line) >= _BOILERPLATE_LENGTH or _BOILERPLATE.search(line) is None]
    return "\n".join(kept), len(lines) - len(kept)
