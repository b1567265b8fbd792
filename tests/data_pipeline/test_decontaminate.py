from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import decontaminate
from data_pipeline.append import append
from data_pipeline.build import build
from data_pipeline.clean import normalise
from data_pipeline.config import BuildConfig, CleanConfig, DecontaminateConfig, NearDedupConfig, TokenizerConfig
from data_pipeline.decontaminate import contaminated, first_shared, held_out_ngrams
from data_pipeline.errors import DataError
from data_pipeline.ngrams import words
from data_pipeline.overlaps import find_overlaps
from data_pipeline.split import document_hash

from .conftest import write_jsonl

HELD_OUT = "It was a bright cold day in April, and the clocks were striking thirteen; nobody looked up."


def documents(texts):
    return [(document_hash(text), text) for text in texts]


def test_thirteen_shared_words_drop_a_document_and_twelve_do_not(tmp_path):
    shared = words(HELD_OUT)
    texts = [
        "He quoted: " + " ".join(shared[1:14]).upper() + "!",
        "He quoted: " + " ".join(shared[1:13]) + " and stopped",
        "Something else altogether.",
    ]
    result, report = contaminated(documents(texts), held_out_ngrams([HELD_OUT]), tmp_path)
    assert [result.contains(hash_) for hash_, _ in documents(texts)] == [True, False, False]
    assert (report.documents, report.dropped, report.bytes_dropped) == (3, 1, len(texts[0]))
    assert report.samples == [(texts[0], " ".join(shared[1:14]))]


@settings(max_examples=60)
@given(st.lists(st.text("ab ", max_size=20), max_size=6), st.lists(st.text("ab ", max_size=20), max_size=6))
def test_agrees_with_sets_of_words(held_out, training):
    def grams(text):
        found = words(text)
        return {tuple(found[i : i + 3]) for i in range(len(found) - 2)}

    known = set().union(*map(grams, held_out))
    hashes = held_out_ngrams(held_out, 3)
    assert len(hashes) == len(known)
    for text in training:
        assert (first_shared(text, hashes, 3) is not None) == bool(grams(text) & known)


def test_batches_do_not_change_the_ngrams(monkeypatch, texts):
    whole = held_out_ngrams(texts[:50])
    monkeypatch.setattr(decontaminate, "_BATCH", 10)
    assert np.array_equal(held_out_ngrams(reversed(texts[:50])), whole)
    assert (np.diff(whole.astype(object)) > 0).all()


def test_overlaps_look_at_all_splits_and_files(tmp_path, texts):
    held = {document_hash(text) for text in texts[:20]}
    copy = " ".join(texts[3].split(" ")[5:40]) + " new words follow here"
    benchmark = " ".join(f"question{i}" for i in range(20))
    leak = "Answers: " + benchmark
    corpus = documents([*texts, copy, leak])
    random.Random(0).shuffle(corpus)
    source = write_jsonl(tmp_path / "benchmark.jsonl", [benchmark])
    config = CleanConfig(decontaminate=DecontaminateConfig(files=(str(source),)), near_dedup=NearDedupConfig())
    found = find_overlaps(config, lambda: iter(corpus), held.__contains__, tmp_path)
    reasons = {text: found.reason(hash_) for hash_, text in corpus if found.reason(hash_)}
    assert reasons == {copy: "contaminated", leak: "contaminated"}
    assert found.report()["contaminated"]["dropped"] == 2
    assert found.report()["near_duplicate"]["documents"] == 402


def test_nothing_is_read_when_nothing_is_asked(tmp_path):
    def never():
        raise AssertionError

    assert find_overlaps(CleanConfig(), never, bool, tmp_path).report() == {}


def test_a_build_drops_and_reports_what_overlaps(tmp_path, texts, settings):
    near = texts[0] + " one more word"
    source = write_jsonl(tmp_path / "a.jsonl", [*texts, near, "short"])
    clean = CleanConfig(near_dedup=NearDedupConfig(), decontaminate=DecontaminateConfig())
    config = BuildConfig(sources=(str(source),), output=tmp_path / "d", clean=clean, **settings)
    with build(config, progress=False) as dataset:
        report = dataset.index.report
        assert report["rejected"] == {"too_short": 1, "not_text": 0, "near_duplicate": 1}
        assert report["documents_read"] == 402 == report["documents_kept"] + 2
        assert report["overlaps"]["near_duplicate"]["dropped"] == 1
        assert report["overlaps"]["contaminated"]["dropped"] == 0
        hashes = {bytes(row) for name in dataset.split_names for row in dataset.split(name).document_table["hash"]}
    with pytest.raises(DataError, match="build it again with the new sources"):
        append(tmp_path / "d", (str(source),), progress=False)
    gone = max((texts[0], near), key=lambda text: document_hash(normalise(text)))
    assert {document_hash(normalise(text)) for text in [*texts, near] if text != gone} == hashes


def test_a_build_that_loses_a_split_says_so(tmp_path, settings, built):
    source = write_jsonl(tmp_path / "a.jsonl", [HELD_OUT + f" Copy {number}." for number in range(60)])
    options = settings | {"tokenizer": TokenizerConfig(model=built / "tokenizer.model")}
    clean = CleanConfig(decontaminate=DecontaminateConfig())
    config = BuildConfig(sources=(str(source),), output=tmp_path / "d", clean=clean, **options)
    with pytest.raises(DataError, match="left no document in the train split"):
        build(config, progress=False)


def test_appending_adds_up_reports_with_samples(tmp_path, texts, settings):
    first = write_jsonl(tmp_path / "a.jsonl", [*texts, "one short", "two short"])
    second = write_jsonl(tmp_path / "b.jsonl", [texts[0] + " and more", "3 short", "4 short", "5 short", "\x00" * 300])
    build(BuildConfig(sources=(str(first),), output=tmp_path / "d", **settings), progress=False).close()
    with append(tmp_path / "d", (str(second),), progress=False) as dataset:
        report = dataset.index.report
    assert report["rejected"] == {"too_short": 5 + 1, "not_text": 0}
    assert len(report["samples"]["too_short"]) == 3
