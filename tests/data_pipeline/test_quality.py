"""Each rule on a document that its paper would keep and one that it would drop, and the laws that hold for all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipeline.clean import Cleaner, normalise
from data_pipeline.config import BuildConfig, CleanConfig
from data_pipeline.quality import (
    RULES,
    Shape,
    drop_boilerplate_lines,
    duplicate_line_characters,
    duplicate_lines,
    duplicate_ngram_characters,
    duplicate_paragraphs,
    top_ngram_characters,
)

PROSE = """The harbour had been quiet for most of that winter, and the boats lay with their masts bare.
When spring came the fishermen began to mend their nets along the wall, talking of prices and weather.
Nobody mentioned the storm which had taken three crews in November, although everybody thought about it.

An old captain, whose sons had both gone to work in the city, still walked down each morning with his dog.
He would stop beside the last boat, look over its planks, and say that wood remembers more than people do.
By noon the market was loud again; gulls fought over scraps while children carried ice between the stalls.
"""
NAMES = "abcdefghijklmnopqrstuvwxyz"

BAD = {
    "lorem_ipsum": PROSE + "Lorem ipsum dolor sit amet.",
    "curly_braces": PROSE + "int main() { return 0; }",
    "min_words": "Too few words of the kind that have meaning.",
    "max_words": " ".join(f"word{i}" for i in range(100_001)),
    "min_mean_word_length": "a be " * 40,
    "max_mean_word_length": "incomprehensibilities " * 60,
    "symbol_ratio": PROSE + " #tag" * 40,
    "bullet_lines": "\n".join(f"- the {c} and of item" for c in NAMES),
    "ellipsis_lines": "\n".join(f"the {c} and of more to read..." for c in NAMES),
    "punctuated_lines": "\n".join(f"a menu entry without a full stop, number {c}" for c in NAMES),
    "short_lines": "\n".join(f"Short line {c}." for c in NAMES),
    "stop_words": "uno dos tres cuatro cinco seis siete ocho nueve diez " * 6,
    "alphabetic_words": PROSE + " 12 34 | 56" * 20,
    "duplicate_lines": PROSE + "Read more.\n" * 6,
    "duplicate_line_characters": PROSE + "\n".join(PROSE.split("\n")[:2]),
    "duplicate_paragraphs": PROSE + "\n\nShare this." * 5,
    "duplicate_paragraph_characters": PROSE + "\n\n" + PROSE,
    "top_2gram_characters": PROSE + "wonderful bargains " * 40,
    "top_3gram_characters": PROSE + "wonderful cheap bargains, " * 40,
    "top_4gram_characters": PROSE + "buy wonderful cheap bargains, " * 40,
    **{f"duplicate_{n}gram_characters": PROSE.replace("\n", " ") * 2 for n in range(5, 11)},
}


def test_every_rule_has_an_example():
    assert BAD.keys() == RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_rule_keeps_prose_and_rejects_its_example(name):
    measure = RULES[name]
    assert not measure.rejects(Shape(normalise(PROSE)), measure.threshold)
    assert measure.rejects(Shape(normalise(BAD[name])), measure.threshold)


def test_thresholds_are_the_published_ones():
    assert [RULES[f"duplicate_{n}gram_characters"].threshold for n in range(5, 11)] == [
        0.15,
        0.14,
        0.13,
        0.12,
        0.11,
        0.10,
    ]
    assert [RULES[f"top_{n}gram_characters"].threshold for n in (2, 3, 4)] == [0.20, 0.18, 0.16]


def test_measures_by_hand():
    shape = Shape("one\ntwo\n\none\nthree")
    assert duplicate_lines(shape) == 1 / 4
    assert duplicate_line_characters(shape) == 3 / 14
    assert duplicate_paragraphs(shape) == 0.0
    assert top_ngram_characters(Shape("aa b aa b cc"), 2) == 6 / 8
    assert top_ngram_characters(Shape("aa b cc"), 2) == 0.0
    # words 3 to 5 repeat words 0 to 2: both 2-grams there, three words of one character each
    assert duplicate_ngram_characters(Shape("a b c a b c dddd"), 2) == 3 / 10
    assert duplicate_ngram_characters(Shape("a b c a b d"), 3) == 0.0


words = st.lists(st.sampled_from(["a", "bb", "the", "of", "x.", "\n", "\n\n", "#", "…", "{", "é"]), max_size=60)


@given(words)
def test_measures_are_shares_and_longer_duplicates_are_rarer(parts):
    shape = Shape(normalise(" ".join(parts)))
    for name, measure in RULES.items():
        value = measure.of(shape)
        assert value >= 0
        if measure.threshold < 1 and name != "symbol_ratio" and not name.startswith(("lorem", "curly")):
            assert value <= 1
    for n in (3, 5, 7):  # the definition, word by word
        grams = [tuple(shape.words[i : i + n]) for i in range(len(shape.words) - n + 1)]
        again = {i + k for i, gram in enumerate(grams) if gram in grams[:i] for k in range(n)}
        share = sum(len(shape.words[i]) for i in again) / max(1, sum(map(len, shape.words)))
        assert duplicate_ngram_characters(shape, n) == pytest.approx(share)
    shares = [duplicate_ngram_characters(shape, n) for n in range(2, 11)]
    assert shares == sorted(shares, reverse=True)


def test_boilerplate_lines_go_and_articles_about_the_subject_stay():
    page = "Please enable JavaScript to view this page.\nThe story.\nWe use cookies to improve the site.\nEnd."
    assert drop_boilerplate_lines(page) == ("The story.\nEnd.", 2)
    article = "JavaScript was designed by Brendan Eich in ten days of May 1995.\nHe ate cookies."
    assert drop_boilerplate_lines(article) == (article, 0)


@given(st.lists(st.sampled_from(["enable javascript", "cookie policy", "prose", "", " x\u0301"])))
def test_cleaning_is_idempotent(lines):
    config = CleanConfig(preset="web", rules=dict.fromkeys(RULES, False))
    once = Cleaner.of(config, 1).clean("\n".join(lines))
    assert once is None or Cleaner.of(config, 1).clean(once) == once


def test_web_preset_counts_add_up_and_samples_ignore_the_order():
    texts = [*BAD.values(), PROSE, PROSE + "Write to me at someone@example.com.", "x"]
    reports = []
    for order in (texts, texts[::-1]):
        cleaner = Cleaner.of(CleanConfig(preset="web"), 5)
        kept = [text for text in map(cleaner.clean, order) if text is not None]
        reports.append(cleaner.report)
        assert len(kept) + sum(cleaner.report.rejected.values()) == cleaner.report.documents_read == len(texts)
        raw = sum(len(text.encode()) for text in texts)
        assert sum(cleaner.report.bytes_rejected.values()) == raw - sum(
            len(text.encode()) for text in (PROSE, PROSE + "Write to me at someone@example.com.")
        )
        assert any("|||EMAIL_ADDRESS|||" in text for text in kept)
    assert reports[0] == reports[1]
    assert reports[0].edits["email"] == 1
    assert reports[0].samples["too_short"] == ["x"]


def test_merged_reports_are_the_report_of_the_whole():
    texts = list(BAD.values())
    whole, parts = Cleaner.of(CleanConfig(preset="web"), 5), [Cleaner.of(CleanConfig(preset="web"), 5) for _ in "ab"]
    for number, text in enumerate(texts):
        whole.clean(text)
        parts[number % 2].clean(text)
    parts[0].report.merge(parts[1].report)
    assert parts[0].report == whole.report


def test_presets_and_overrides():
    assert CleanConfig().thresholds() == {}
    assert CleanConfig(preset="web").thresholds() == {name: rule.threshold for name, rule in RULES.items()}
    chosen = CleanConfig(preset="web", rules={"curly_braces": False, "min_words": 20}).thresholds()
    assert "curly_braces" not in chosen
    assert chosen["min_words"] == 20
    assert CleanConfig(rules={"short_lines": True}).thresholds() == {"short_lines": 0.67}
    assert CleanConfig(preset="none").not_text_limit is None
    with pytest.raises(ValidationError, match="did you mean short_lines"):
        CleanConfig(rules={"shortlines": 1})
    assert BuildConfig(sources=("a.txt",), output="x").clean == CleanConfig()
