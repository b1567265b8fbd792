from __future__ import annotations

import hashlib
import io
import re

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.clean import normalise
from data_pipeline.config import TokenizerConfig
from data_pipeline.errors import DataError
from data_pipeline.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request, tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("tokenizer") / f"{request.param}.model"
    return train_tokenizer(texts, TokenizerConfig(kind=request.param, vocab_size=500), path)


odd = st.sampled_from(
    ["\u2581", "  ", " \u2581 ", "\t", "\n", "    ", "\u0301", "中", "😀", "<s>", "<unk>", "<0x0A>", "\ufffd"]
)
some_text = st.lists(st.text(max_size=8) | odd, max_size=12).map("".join)


@settings(max_examples=400)
@given(some_text)
@example(" leading and trailing ")
@example("\u2581\u2581 \u2581")
@example("a\u2581")
@example("e\u0323\u0301")
@example("\u2585 ⁇ \x00\x01")
def test_round_trip_is_exact(tokenizer, text):
    for version in (normalise(text), text):
        ids = tokenizer.encode(version)
        assert tokenizer.decode(ids) == version
        assert tokenizer.bos_id not in ids  # no text can forge a separator
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_separator_has_no_text(tokenizer):
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode("kalo"), tokenizer.bos_id]) == "kalo"
    assert tokenizer.pad_id is None


def test_white_space_and_digits_have_the_pieces_that_were_asked_for(tokenizer):
    assert len(tokenizer.encode("\n")) == len(tokenizer.encode("\t")) == 1
    assert len(tokenizer.encode("\n\n\n")) == 3
    assert len(tokenizer.encode("2024")) == 4


def test_byte_lengths_add_up(tokenizer, texts):
    lengths = tokenizer.byte_lengths()
    for text in texts[:20]:
        assert sum(lengths[i] for i in tokenizer.encode(text)) == len(text.encode())


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    for bad in (tokenizer.vocab_size, -1):
        with pytest.raises(DataError, match=f"token {bad} is outside the vocabulary"):
            tokenizer.decode([5, bad])


def test_training_is_deterministic_and_described(tmp_path, tokenizer, texts):
    config = TokenizerConfig(kind=tokenizer.kind, vocab_size=500)
    again = train_tokenizer(texts, config, tmp_path / "again.model")
    assert again.hash == tokenizer.hash == hashlib.sha256((tmp_path / "again.model").read_bytes()).hexdigest()
    assert again.kind == config.kind
    assert again.vocab_size == 500
    other = train_tokenizer(texts[:200], config, tmp_path / "other.model")
    assert other.hash != tokenizer.hash


def test_training_is_silent(tmp_path, texts, capfd):
    train_tokenizer(texts, TokenizerConfig(vocab_size=400), tmp_path / "a.model")
    assert capfd.readouterr() == ("", "")


def test_sample_bytes_bounds_what_is_read(tmp_path, texts):
    read = []

    def stream():
        for text in texts:
            read.append(text)
            yield text

    train_tokenizer(stream(), TokenizerConfig(vocab_size=400, sample_bytes=30_000), tmp_path / "a.model")
    assert 30_000 <= sum(len(text.encode()) for text in read) < 40_000


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_too_large_a_vocabulary_names_one_that_works(tmp_path, texts, kind):
    config = TokenizerConfig(kind=kind, vocab_size=50_000)
    with pytest.raises(DataError, match="larger than this text supports") as error:
        train_tokenizer(texts[:50], config, tmp_path / "a.model")
    largest = int(re.search(r"set vocab_size to (\d+) or less", str(error.value))[1])
    works = train_tokenizer(texts[:50], config.model_copy(update={"vocab_size": largest}), tmp_path / "b.model")
    assert works.vocab_size == largest


def test_too_small_a_vocabulary_names_the_bound(tmp_path):
    many = "".join(chr(0x4E00 + i) for i in range(3000))
    with pytest.raises(DataError, match=r"cannot hold the .* single characters") as error:
        train_tokenizer([many], TokenizerConfig(vocab_size=300), tmp_path / "a.model")
    assert int(re.search(r"more than (\d+)", str(error.value))[1]) > 300


def test_no_text_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no text to train"):
        train_tokenizer([], TokenizerConfig(), tmp_path / "a.model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"byte_fallback": False, "normalization_rule_name": "identity", "add_dummy_prefix": False}, "no byte pieces"),
        ({"byte_fallback": True}, "does not give back"),
        ({"byte_fallback": True, "bos_id": -1}, "no beginning-of-sentence piece"),
    ],
)
def test_foreign_models_that_lose_text_are_refused(tmp_path, texts, options, message):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=500, model_type="bpe", minloglevel=2, **options
    )
    path = tmp_path / "foreign.model"
    path.write_bytes(model.getvalue())
    with pytest.raises(DataError, match=message):
        Tokenizer.load(path)


def test_files_that_are_no_model_are_refused(tmp_path):
    path = tmp_path / "x.model"
    with pytest.raises(DataError, match="cannot be read"):
        Tokenizer.load(path)
    path.write_bytes(b"\x00\xffnot a model")
    with pytest.raises(DataError, match="is not a SentencePiece model"):
        Tokenizer.load(path)
