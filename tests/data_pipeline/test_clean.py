from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.clean import Cleaner, normalise, not_text, too_short

anything = st.text(st.characters(codec=None) | st.sampled_from(list(" \t\n\r\v\f\x00\u2028\u0301e\ufeff\ud800\u2581")))


@settings(max_examples=500)
@given(anything)
@example("e\x00\u0301")  # deleting the control brings letter and accent together
@example("e\ufeff\u0301")
@example("a \r\r \n\n\x0c b")
@example(" \u0301")
def test_normalise_is_idempotent_and_keeps_its_promises(text):
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert once == once.strip()
    assert "\n\n\n\n" not in once
    assert all(line == line.rstrip() for line in once.split("\n"))
    assert not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in once)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("page\x0cnext\x0bline\u2028end", "page\nnext\nline\nend"),
        ("a \t\nb", "a\nb"),
        ("a\n\n\nb", "a\n\n\nb"),  # two blank lines stay
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("e\u0301", "\u00e9"),
        ("x\x00y\x7fz", "xyz"),
        ("def f():\n    return 1", "def f():\n    return 1"),  # indentation is text
        ("\ud800", "\ufffd"),
    ],
)
def test_normalise_examples(text, expected):
    assert normalise(text) == expected


def test_normalise_is_linear_in_runs_of_spaces():
    # quadratic would be 4e10 steps: the test would time out rather than pass
    assert len(normalise("a" + " " * 200_000 + "b")) == 200_002


def test_rules_count_what_they_reject():
    cleaner = Cleaner((too_short(10), not_text()))
    assert cleaner.clean("a good document\x00") == "a good document"
    assert cleaner.clean("short") is None
    assert cleaner.clean("\x00\x01\x02" * 20 + "0123456789ab") is None
    assert cleaner.clean("\ufffd" * 20 + "0123456789ab") is None
    assert cleaner.clean("\ufffd" + "0123456789ab") == "\ufffd0123456789ab"  # one bad character is no reason
    assert cleaner.report.documents_read == 5
    assert cleaner.report.rejected == {"too_short": 1, "not_text": 2}
