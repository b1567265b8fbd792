"""Long text in chunks is the same text at once, with a memory that does not grow."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from data_pipeline.corpus import Corpus
from model.config import ModelConfig
from model.lm import LanguageModel
from model.presets import preset
from pretrain import long_text, stream_eval
from pretrain.cli import app
from pretrain.errors import RunError
from pretrain.long_text import LongText, windows
from pretrain.stream_eval import Reading, read
from tests.e2e.runs import CONFIG, pha, write_config

MODELS = {
    "taipan": {},
    "mamba2": {},
    "pha": {"attention": {"window": 8}},
    "transformer": {},  # unbounded, but short enough to fit
}


def build(name, **changes):
    torch.manual_seed(0)
    config = ModelConfig(**{**preset(f"{name}-nano").model_dump(), "vocab_size": 61, **changes})
    return LanguageModel(config).eval()


def pieces(tokens, *sizes):
    return LongText(len(tokens), iter(np.split(tokens, np.cumsum(sizes))))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_give_what_one_call_gives(name, chunk):
    model = build(name, **MODELS[name])
    tokens = np.random.default_rng(0).integers(0, 61, 140)
    result = read(model, [pieces(tokens, 1, 60, 0, 37)], "noise", chunk)
    whole = torch.from_numpy(tokens)[None]
    with torch.no_grad():
        nats = F.cross_entropy(model(whole)[0, :-1], whole[0, 1:], reduction="none").double()
    assert result.tokens == 139
    assert result.loss == pytest.approx(nats.mean().item(), rel=1e-5)
    for entry in result.bins:
        inside = nats[entry.first - 1 : entry.last]  # the first token is not predicted
        assert entry.tokens == len(inside)
        assert entry.nats == pytest.approx(inside.sum().item(), rel=1e-4)
    assert [entry.first for entry in result.bins] == [1, 2, 4, 8, 16, 32, 64, 128]


def test_bins_add_up_over_documents():
    model = build("mamba2")
    texts = [np.random.default_rng(seed).integers(0, 61, length) for seed, length in ((1, 50), (2, 9), (3, 1))]
    parts = [read(model, [pieces(text)], "noise", 16) for text in texts[:2]]
    both = read(model, [pieces(text) for text in texts], "noise", 16)
    assert both.documents == 3
    assert both.tokens == sum(part.tokens for part in parts) == 49 + 8
    assert sum(b.nats for b in both.bins) == pytest.approx(sum(b.nats for part in parts for b in part.bins))
    assert both.as_dict()["perplexity"] == pytest.approx(math.exp(both.loss))


def test_windows_cover_a_text_once_whatever_its_pieces():
    tokens = np.arange(40)
    for sizes in ((), (40,), (3, 0, 20, 1)):
        for chunk in (1, 6, 13, 39, 40, 99):
            found = list(windows(pieces(tokens, *sizes), chunk, None))
            assert np.array_equal(np.concatenate([w.inputs for w in found]), tokens[:-1])
            assert np.array_equal(np.concatenate([w.labels for w in found]), tokens[1:])
            assert [w.start for w in found] == [int(w.inputs[0]) for w in found]
            assert max(len(w.inputs) for w in found) <= chunk
    limited = list(windows(pieces(tokens, 3, 20), 6, 17))
    assert np.array_equal(np.concatenate([w.labels for w in limited]), tokens[1:17])


def test_a_bin_is_an_octave():
    result = Reading("", 8)
    result.add(1, np.ones(5))
    result.add(6, np.full(2, 2.0))
    assert [(b.first, b.last, b.tokens, b.nats) for b in result.bins] == [(1, 1, 1, 1), (2, 3, 2, 2), (4, 7, 4, 6)]
    assert [b.first for b in result.bins] == [1, 2, 4]
    result.add(2**20 - 1, np.ones(2))
    assert (result.bins[19].tokens, result.bins[20].tokens) == (1, 1)


def test_an_unbounded_memory_is_refused_in_a_sentence(monkeypatch):
    model = build("transformer")
    tokens = np.zeros(9, dtype=np.int64)
    with pytest.raises(RunError, match="length is unknown; give --tokens"):
        read(model, [LongText(None, iter([tokens]))], "a file", 4)
    assert read(model, [LongText(None, iter([tokens]))], "a file", 4, limit=5).tokens == 4
    monkeypatch.setattr(stream_eval, "_free_memory", lambda device: 2 * 7 * 2 * 2 * 2 * 8 * 4)
    with pytest.raises(RunError, match=r"at most --tokens 7, or give --window"):
        read(model, [pieces(tokens)], "noise", 4)
    assert read(build("transformer", attention={"window": 2}), [pieces(tokens)], "noise", 4).tokens == 8
    with pytest.raises(RunError, match="nothing to predict"):
        read(build("mamba2"), [pieces(tokens[:1])], "noise", 4)


def test_texts_of_a_dataset_and_of_a_file(tiny_dataset, tmp_path, monkeypatch):
    corpus = Corpus.open({"data": tiny_dataset})
    split = corpus.splits("validation")["data"]
    whole = np.concatenate(list(long_text.of_split(corpus, "validation").parts))
    assert len(whole) == split.tokens == long_text.of_split(corpus, "validation").length
    found = long_text.longest(corpus, "validation", 3)
    lengths = sorted((len(tokens) + 1 for _, tokens in split.iter_documents()), reverse=True)
    documents = [np.concatenate(list(text.parts)) for text in found]
    assert [text.length for text in found] == [len(d) for d in documents] == lengths[:3]
    assert all(d[0] == corpus.datasets["data"].bos_id and (d[1:] != d[0]).all() for d in documents)
    tokenizer = corpus.tokenizer()
    file = tmp_path / "long.txt"
    file.write_text("".join(f"Line {i} of a long text.\n" for i in range(300)), encoding="utf-8")
    expected = [tokenizer.bos_id, *tokenizer.encode(file.read_text(encoding="utf-8"))]
    monkeypatch.setattr(long_text, "TEXT_PIECE", 100)
    assert np.concatenate(list(long_text.of_file(file, tokenizer).parts)).tolist() == expected
    file.write_text("x" * 3000, encoding="utf-8")  # no line ends
    assert tokenizer.decode(np.concatenate(list(long_text.of_file(file, tokenizer).parts)).tolist()) == "x" * 3000
    with pytest.raises(RunError, match="cannot be read"):
        long_text.of_file(tmp_path / "none.txt", tokenizer)


def test_the_command(tiny_dataset, tmp_path):
    text = CONFIG.replace("steps: 14", "steps: 2").replace("zero_stage: 2", "zero_stage: 1")
    assert pha("train", write_config(tmp_path, tiny_dataset, tmp_path / "run", text)).returncode == 0
    run = tmp_path / "run"

    def evaluate(*options):
        return CliRunner().invoke(app, ["eval", str(run), *map(str, options)])

    result = json.loads(evaluate("--stream", "--tokens", 500, "--window", 16, "--json").stdout)
    assert result["tokens"] == 499 and len(result["bins"]) == 9 and result["peak_bytes"] > 1e7
    shown = evaluate("--stream", "--longest", 2, "--chunk", 64)
    assert "2 longest documents" in " ".join(shown.stdout.split())
    assert "MB" in shown.stderr
    for options, words in (
        (["--tokens", 5], "add --stream"),
        (["--stream", "--longest", 1, "--text", "x"], "one of them"),
    ):
        refused = evaluate(*options)
        assert isinstance(refused.exception, RunError) and words in str(refused.exception)
