from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from typer.testing import CliRunner

from data_pipeline.batch import RowBatch
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from data_pipeline.foreign import stream_batches
from pretrain.cli import app


@pytest.fixture(scope="module")
def shards(tmp_path_factory, texts):
    """Four plain archives with 100 texts each."""
    folder = tmp_path_factory.mktemp("foreign")
    for shard in range(4):
        with tarfile.open(folder / f"part-{shard}.tar", "w") as tar:
            for i, text in enumerate(texts[shard * 100 : shard * 100 + 100]):
                data = text.encode() if i % 2 else json.dumps({"text": text}).encode()
                info = tarfile.TarInfo(f"{i:04d}." + ("txt" if i % 2 else "json"))
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


def test_batches_hold_the_tokens_of_the_archives(shards, texts, dataset):
    tokenizer = dataset.tokenizer()
    stream = [token for text in texts for token in (tokenizer.bos_id, *tokenizer.encode(text))]
    batches = list(stream_batches([str(shards / "*.tar")], tokenizer, seq_len=64, batch_size=4))
    assert all(isinstance(batch, RowBatch) and batch.tokens.shape == (4, 64) for batch in batches)
    assert [batch.first_sequence for batch in batches] == list(range(0, 4 * len(batches), 4))
    seen = np.concatenate([batch.tokens.reshape(-1) for batch in batches])
    assert len(stream) - len(seen) <= 4 * 64
    assert seen.tolist() == stream[: len(seen)]
    labels = np.concatenate([batch.labels.reshape(-1) for batch in batches])
    assert labels.tolist() == stream[1 : len(seen) + 1]


def test_ranks_share_the_archives_and_shuffling_is_seeded(shards, dataset):
    def read(**options):
        batches = stream_batches([str(shards / "*.tar")], dataset.tokenizer(), seq_len=32, batch_size=2, **options)
        return np.concatenate([batch.tokens.reshape(-1) for batch in batches])

    def documents(tokens):
        return int((tokens == dataset.tokenizer().bos_id).sum())

    found = [documents(read(rank=rank, world=2)) for rank in range(2)]
    assert found[0] + found[1] >= 398
    shuffled = read(shuffle_buffer=50, seed=1)
    assert np.array_equal(shuffled, read(shuffle_buffer=50, seed=1))
    assert not np.array_equal(shuffled, read(shuffle_buffer=50, seed=2))
    assert not np.array_equal(shuffled[:500], read()[:500])
    assert documents(read(epochs=2)) >= 798


def test_what_cannot_be_streamed_is_told(shards, dataset, tmp_path):
    def first(*sources, **options):
        settings = {"seq_len": 8, "batch_size": 1} | options
        return next(stream_batches(sources, dataset.tokenizer(), **settings))

    with pytest.raises(DataError, match="is a URL"):
        first("pipe:cat /etc/passwd")
    with pytest.raises(DataError, match="cannot be shared by 5 ranks"):
        first(str(shards / "*.tar"), world=5)
    with pytest.raises(DataError, match="must be at least 1"):
        first(str(shards / "*.tar"), seq_len=0)
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    with pytest.raises(DataError, match="no tar archive"):
        first(str(tmp_path / "a.txt"))
    data = (shards / "part-0.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: data.index(b"0050.json")])
    with pytest.raises(DataError, match="cut short"):
        list(stream_batches([str(tmp_path / "cut.tar")], dataset.tokenizer(), seq_len=8, batch_size=1))


def test_index_command_makes_a_dataset(shards, texts, tmp_path):
    paths = [str(shards / f"part-{shard}.tar") for shard in range(4)]
    output = tmp_path / "indexed"
    result = CliRunner().invoke(
        app, ["data", "index", *paths, str(output), "--vocab", "600", "--validation", "0.1", "--test", "0", "--json"]
    )
    assert result.exit_code == 0, result.output
    with Dataset.open(output) as found:
        assert sum(info.documents for info in found.index.splits.values()) == len(texts)
