from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.split import document_hash, split_of


def test_fractions_are_met():
    counts = Counter(split_of(document_hash(str(i)), 0.1, 0.05) for i in range(20_000))
    assert abs(counts["validation"] / 20_000 - 0.1) < 0.01
    assert abs(counts["test"] / 20_000 - 0.05) < 0.01


@given(st.text(st.characters(codec="utf-8")), st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0, 2**64 - 1))
def test_changing_one_fraction_moves_nothing_between_the_held_out_splits(text, validation, test, salt):
    hash_ = document_hash(text)
    assert split_of(hash_, 0.0, 0.0, salt) == "train"
    before, after = split_of(hash_, validation, 0.1, salt), split_of(hash_, validation / 2, 0.1, salt)
    assert before == after or (before, after) == ("validation", "train")
    before, after = split_of(hash_, 0.1, test, salt), split_of(hash_, 0.1, test / 2, salt)
    assert before == after or (before, after) == ("test", "train")


def test_salt_and_text_decide():
    assignments = [[split_of(document_hash(str(i)), 0.3, 0.3, salt) for i in range(200)] for salt in (0, 0, 1)]
    assert assignments[0] == assignments[1] != assignments[2]


def test_known_values():
    # a changed assignment would put training text of existing datasets into validation
    assert document_hash("PHA").hex() == "63a7e2be78898ba83824b0c0cc8dfb60"
    # second letters: tRain, vAlidation, tEst
    assert [split_of(document_hash(str(i)), 0.3, 0.3)[1] for i in range(12)] == list("rrrreaereere")
