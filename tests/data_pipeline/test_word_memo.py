"""The word memo's law: the same ids as the library gives for the whole text, whatever the text and the bounds."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.config import TokenizerConfig
from data_pipeline.tokenizer import load_tokenizer, train_tokenizer
from data_pipeline.word_memo import WordMemo, _cost, word_memo


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, texts):
    """A model whose pieces include runs of spaces and words after several spaces."""
    indented = [text.replace(" ka", "    ka").replace(" lo", "  lo") for text in texts]
    return train_tokenizer(indented, TokenizerConfig(vocab_size=600), tmp_path_factory.mktemp("memo") / "a.model")


pieces = st.sampled_from(
    [
        " ",
        "  ",
        "     ",
        "\n",
        "\t",
        "\n\n  ",
        "ka",
        "lo",
        "mi",
        "ren",
        "grisha",
        ".",
        "7",
        "\u2581",
        "\u00a0",
        "中",
        "é",
    ]
)
some_text = st.lists(pieces | st.text(max_size=4), max_size=30).map("".join)


@settings(max_examples=600)
@given(some_text)
@example("    ka  \n  lo ")
@example(" ")
@example("")
def test_the_memo_never_changes_an_id(tokenizer, text):
    expected = tokenizer.encode_plain(text)
    for _ in range(2):  # unknown, then remembered
        found = tokenizer.encode_array(text)
        assert found.dtype == expected.dtype == np.uint16
        assert found.tolist() == expected.tolist() == tokenizer.encode(text)


def test_whole_documents_agree(tokenizer, texts):
    assert tokenizer._memo is not None
    for text in texts:
        assert tokenizer.encode_array(text).tolist() == tokenizer.encode_plain(text).tolist()


@pytest.mark.parametrize("bounds", [(5, 1 << 20), (1000, 900)])
def test_the_memo_stays_within_its_bounds(tokenizer, texts, bounds):
    entries, size = bounds
    memo = WordMemo(lambda text: tokenizer.encode_plain(text).tolist(), "uint16", entries, size)
    for text in texts[:20]:
        assert memo.encode(text) == tokenizer.encode_plain(text).tobytes()
        assert len(memo) <= entries
        assert memo._used <= size
        assert memo._used == sum(map(_cost, memo._known, memo._known.values()))
    assert memo.encode("x" * 1000) == tokenizer.encode_plain("x" * 1000).tobytes()
    assert "x" * 1000 not in memo


def test_a_full_memo_forgets_a_half_and_what_is_frequent_comes_back(tokenizer):
    calls = []

    def encode(text):
        calls.append(text)
        return tokenizer.encode_plain(text).tolist()

    memo = WordMemo(encode, "uint16", 40, 1 << 20)
    for number in range(200):
        text = f"ka lo mi {number}"
        assert memo.encode(text) == tokenizer.encode_plain(text).tobytes()
    assert 4 <= sum("ka" in call for call in calls) <= 15  # once in twenty to forty new parts


def test_threads_may_share_a_memo_that_is_always_full(tokenizer, texts):
    memo = WordMemo(lambda text: tokenizer.encode_plain(text).tolist(), "uint16", 50, 1 << 20)
    expected = [tokenizer.encode_plain(text).tobytes() for text in texts[:80]]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(memo.encode, texts[:80])) == expected
    assert memo._used == sum(map(_cost, memo._known, memo._known.values()))


def _model(texts, **options):
    model = io.BytesIO()
    plain = {
        "model_type": "bpe",
        "vocab_size": 500,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["\n", "\t"],
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["ka lo mi " * 300] * 9 + texts[:100]), model_writer=model, **(plain | options)
    )
    return model.getvalue()


@pytest.mark.parametrize(
    ("options", "safe"),
    [
        ({}, True),
        ({"allow_whitespace_only_pieces": True}, True),
        ({"user_defined_symbols": []}, False),  # tabs are learned inside of pieces
        ({"model_type": "unigram"}, False),
        ({"normalization_rule_name": "nfkc"}, False),
        ({"add_dummy_prefix": True}, False),
        ({"remove_extra_whitespaces": True}, False),
        ({"byte_fallback": False}, False),
        ({"treat_whitespace_as_suffix": True}, False),
        ({"split_by_whitespace": False}, False),
        ({"user_defined_symbols": ["\n", "\t", "ka lo"]}, False),
        ({"user_defined_symbols": ["\n", "\t", "\n\n"]}, False),
    ],
)
def test_models_that_break_the_law_get_no_memo(texts, options, safe):
    model = _model(texts, **options)
    assert (word_memo(model, lambda text: [3]) is not None) == safe


def test_a_model_without_memo_encodes_all_the_same(texts, tmp_path):
    path = tmp_path / "phrases.model"
    path.write_bytes(_model(texts, split_by_whitespace=False))
    tokenizer = load_tokenizer(path)
    assert tokenizer._memo is None
    for text in texts[:50]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
