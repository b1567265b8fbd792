"""GPT-2's byte-level BPE, on a tiny vocabulary of the same form; and on the published one where it is given."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_pipeline.build import build
from data_pipeline.config import BuildConfig, TokenizerConfig
from data_pipeline.errors import DataError
from data_pipeline.gpt2 import _LETTERS, SEPARATOR
from data_pipeline.tokenizer import load_tokenizer
from data_pipeline.verify import verify

MERGES = ("Ġ k", "k a", "l o", "Ġ lo", "Ġk a", "ka lo", "Ċ Ċ", "Ã ©")


def write_gpt2(folder, merges=MERGES):
    folder.mkdir(exist_ok=True)
    pieces = [*_LETTERS, *(pair.replace(" ", "") for pair in merges), SEPARATOR]
    (folder / "encoder.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}), encoding="utf-8")
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_gpt2(tmp_path_factory.mktemp("gpt2") / "files"))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@example(SEPARATOR)
@example(" kalo\n\n kalo é 中 😀  ")
def test_round_trip_is_exact(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.bos_id not in ids
    assert sum(tokenizer.byte_lengths()[i] for i in ids) == len(text.encode())


def test_merges_are_taken_in_their_order(tokenizer):
    table = {tokenizer.decode_bytes([i]): i for i in range(tokenizer.vocab_size - 1)}
    assert tokenizer.encode("kalo") == [table[b"kalo"]]
    assert tokenizer.encode(" kalo") == [table[b" ka"], table[b"lo"]]  # "Ġ k" comes before "k a"
    assert (tokenizer.kind, tokenizer.bos_id, tokenizer.vocab_size) == ("gpt2", 264, 265)


def test_a_dataset_carries_the_vocabulary_as_one_file(tmp_path, corpus, settings, texts):
    folder = write_gpt2(tmp_path / "files")
    options = settings | {"tokenizer": TokenizerConfig(model=folder)}
    dataset = build(BuildConfig(sources=(str(corpus),), output=tmp_path / "d", **options), progress=False)
    assert verify(tmp_path / "d").ok
    again = load_tokenizer(tmp_path / "d" / "tokenizer.json")
    assert again.hash == dataset.tokenizer_hash == load_tokenizer(folder).hash
    assert sum(dataset.split(name).documents for name in dataset.split_names) == len(texts)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "vocab.bpe").unlink(), "must hold encoder.json and vocab.bpe"),
        (lambda f: (f / "encoder.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "encoder.json").write_text('{"a": 5}'), "each used once"),
        (lambda f: (f / "vocab.bpe").write_text("k a\n"), "pieces are not 256 bytes"),
        (lambda f: write_gpt2(f, [*MERGES[1:], MERGES[0]]) and write_gpt2_merges(f), "not in the order of their ids"),
    ],
)
def test_files_that_do_not_fit_are_one_sentence(tmp_path, damage, message):
    folder = write_gpt2(tmp_path / "files")
    damage(folder)
    with pytest.raises(DataError, match=message):
        load_tokenizer(folder)


def write_gpt2_merges(folder):
    (folder / "vocab.bpe").write_text("\n".join(MERGES), encoding="utf-8")


def test_the_published_vocabulary(texts):
    """Skipped unless PHA_GPT2_DIR names the folder of the published files."""
    folder = os.environ.get("PHA_GPT2_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("PHA_GPT2_DIR is not set")
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.vocab_size, tokenizer.bos_id) == (50_257, 50_256)
    assert tokenizer.encode("Hello world") == [15496, 995]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
