from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.hashset import HashSet
from data_pipeline.near_dedup import (
    SHINGLE,
    bands,
    memory_estimate,
    near_duplicates,
    permutation_constants,
    signature,
    union,
)
from data_pipeline.ngrams import ngram_hashes, word_hashes, words
from data_pipeline.split import document_hash


def pair_with_similarity(rng, similarity, shingles=400):
    """Two texts whose word 5-grams have this Jaccard similarity (to a shingle or so): a shared part, then own words."""
    shared = round(2 * shingles * similarity / (1 + similarity))
    common = [f"w{rng.getrandbits(40)}" for _ in range(shared + SHINGLE - 1)]
    return [" ".join([*common, *(f"w{rng.getrandbits(40)}" for _ in range(shingles - shared))]) for _ in "ab"]


def dropped(tmp_path, texts, **options):
    result, report = near_duplicates(((document_hash(text), text) for text in texts), tmp_path, **options)
    assert len(result) == report.dropped
    return [text for text in texts if result.contains(document_hash(text))], report


@pytest.mark.parametrize(("similarity", "low", "high"), [(0.95, 1.0, 1.0), (0.85, 0.95, 1.0), (0.5, 0.0, 0.01)])
def test_recall_and_false_positives_at_known_similarity(tmp_path, similarity, low, high):
    rng = random.Random(1)
    texts = [text for _ in range(200) for text in pair_with_similarity(rng, similarity)]
    _, report = dropped(tmp_path, texts)
    assert low <= report.dropped / 200 <= high
    assert report.dropped == report.groups  # never two different pairs joined


def test_signature_estimates_the_jaccard_similarity():
    constants = permutation_constants(1024)
    for similarity in (0.2, 0.5, 0.8):
        one, two = pair_with_similarity(random.Random(3), similarity)
        estimate = np.mean(signature(one, *constants) == signature(two, *constants))
        assert abs(estimate - similarity) < 4 * (similarity * (1 - similarity) / 1024) ** 0.5 + 0.005


def test_editions_of_a_text_are_one_and_other_texts_stay(tmp_path, texts):
    rng = random.Random(2)
    edition = texts[0].split(" ")
    for place in rng.sample(range(len(edition)), max(1, len(edition) // 200)):
        edition[place] = "erratum"
    other = "PREFACE TO THE SECOND EDITION\n\n" + " ".join(edition).upper().replace(".", " !")
    gone, report = dropped(tmp_path, [*texts, other])
    assert gone == [max((texts[0], other), key=document_hash)]
    assert (report.documents, report.groups) == (401, 1)
    assert len(report.samples) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["near-duplicates"]


def test_smallest_hash_stays_whatever_the_order(tmp_path):
    rng = random.Random(4)
    texts = []
    for _ in range(20):
        base = [f"w{rng.getrandbits(40)}" for _ in range(300)]
        texts += [" ".join([*base[start:], f"end{start}"]) for start in range(0, 24, 4)]
    first, report = dropped(tmp_path, texts)
    assert report.groups == 20
    for start in range(0, 120, 6):
        group = texts[start : start + 6]
        assert [text for text in group if text not in first] == [min(group, key=document_hash)]
    shuffled = [*texts, *texts[:7]]  # exact copies change nothing
    rng.shuffle(shuffled)
    again, second = dropped(tmp_path, shuffled)
    assert set(again) == set(first)
    assert second == report


def test_empty_and_wordless_texts(tmp_path):
    assert dropped(tmp_path, [])[0] == []
    assert len(dropped(tmp_path, ["!!!", "???", "one word"])[0]) == 1  # two of no words are the same


def test_memory_stays_within_the_estimate(tmp_path):
    rng = random.Random(5)
    documents = [(rng.randbytes(16), f"{i % 9000} a b c d {i % 9000}") for i in range(12_000)]
    tracemalloc.start()
    near_duplicates(iter(documents), tmp_path, permutations=16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < memory_estimate(12_000, 16) + 200_000
    assert memory_estimate(8_000_000) < 2e9


def test_bands_are_candidates_for_similar_pairs_only():
    for permutations, threshold in ((128, 0.75), (256, 0.8), (64, 0.7)):
        count, rows = bands(permutations, threshold)
        assert count * rows == permutations
        assert 1 - (1 - (threshold + 0.1) ** rows) ** count >= 0.98
    assert bands(128, 0.75) == (16, 8)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60), st.integers(0, 60))
def test_union_is_connected_components(edges, cut):
    parents = np.arange(31)
    for part in (edges[:cut], edges[cut:]):
        union(parents, np.array([a for a, _ in part], np.int64), np.array([b for _, b in part], np.int64))
    groups = {node: {node} for node in range(31)}
    for a, b in edges:
        merged = groups[a] | groups[b]
        for node in merged:
            groups[node] = merged
    assert parents.tolist() == [min(groups[node]) for node in range(31)]


@given(st.sets(st.binary(min_size=16, max_size=16)), st.lists(st.binary(min_size=16, max_size=16)))
def test_hash_set_holds_what_it_was_given(tmp_path_factory, members, others):
    found = HashSet.of(tmp_path_factory.mktemp("set") / "hashes", members)
    assert list(found) == sorted(members)
    assert all(found.contains(hash_) for hash_ in members)
    assert [found.contains(hash_) for hash_ in others] == [hash_ in members for hash_ in others]


def test_words_and_hashes_are_pinned():
    assert words("Don't STOP, é_1!") == ["don", "t", "stop", "é_1"]
    assert words("你好 world") == ["你", "好", "world"]
    # part of what a dataset contains: a change needs a new PROCESSING_VERSION
    assert ngram_hashes(word_hashes("to be or not"), 3).tolist() == [16625421912925738753, 14213669098439195424]
