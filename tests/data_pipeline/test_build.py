from __future__ import annotations

import errno
import json
import os
import random
from itertools import chain

import pytest
from pydantic import ValidationError

from data_pipeline import layout as layout_module
from data_pipeline.build import build
from data_pipeline.clean import normalise
from data_pipeline.config import BuildConfig, TokenizerConfig
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from data_pipeline.split import document_hash, split_of

from .conftest import make_texts, write_jsonl

LONG = "One sentence that is long enough, at more than 64 characters, to be kept by the rules."


def contents(directory):
    """Name and bytes of every file but build.json, which records the inputs' times."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != "build.json")
    return {str(p.relative_to(directory)): p.read_bytes() for p in files}


def stored(dataset):
    """Split name → list of texts."""
    tokenizer = dataset.tokenizer()
    return {
        name: [tokenizer.decode(ids.tolist()) for _, ids in dataset.split(name).iter_documents()]
        for name in dataset.split_names
    }


def test_every_document_arrives_once_in_its_split(dataset, texts):
    found = stored(dataset)
    expected = {"train": [], "validation": [], "test": []}
    for text in map(normalise, texts):
        expected[split_of(document_hash(text), 0.1, 0.1)].append(text)
    assert {name: sorted(part) for name, part in found.items()} == {n: sorted(p) for n, p in expected.items()}
    for name, part in found.items():
        split = dataset.split(name)
        assert split.documents == len(part)
        assert split.bytes == sum(len(text.encode()) for text in part)
        assert split.words == sum(len(text.split()) for text in part)
        assert (
            split.tokens == int(split.block_tokens.sum()) == sum(map(len, (split.read_block(b) for b in blocks(split))))
        )
    train = [document_hash(text) for text in found["train"]]
    assert train == sorted(train)  # hash order is the shuffle


def blocks(split):
    return range(len(split.blocks))


def test_blocks_hold_whole_documents_and_reach_their_target(dataset):
    split = dataset.split("train")
    sizes = split.block_tokens
    assert all(split.read_block(b)[0] == split.bos_id for b in blocks(split))
    assert (sizes[:-1] >= 700).all()
    longest = int(split.document_table["tokens"].max())
    assert (sizes < 700 + longest).all()


def test_shards_are_closed_near_their_size(dataset):
    shards = dataset.split("train").info.shards
    assert len(shards) > 1
    assert [shard.name for shard in shards] == [f"train-{i:06d}.tar" for i in range(len(shards))]
    assert all(50_000 < shard.bytes < 80_000 for shard in shards[:-1])


def test_result_does_not_depend_on_the_order_of_documents_or_sources(tmp_path, built, texts, settings):
    shuffled = texts.copy()
    random.Random(3).shuffle(shuffled)
    names = [str(write_jsonl(tmp_path / f"{i}.jsonl", shuffled[i::3])) for i in range(3)]
    outputs = [tmp_path / "one", tmp_path / "two"]
    for output, sources in zip(outputs, (names, [*reversed(names), names[0]]), strict=True):
        build(BuildConfig(sources=tuple(sources), output=output, **settings), progress=False)
    assert contents(outputs[0]) == contents(outputs[1])
    ours, theirs = Dataset.open(outputs[0]), Dataset.open(built)
    assert ours.hash == theirs.hash  # cut into other files, the same documents are the same dataset
    assert (outputs[0] / "train-000000.tar").read_bytes() == (built / "train-000000.tar").read_bytes()


def test_additions_move_no_document(tmp_path, dataset, texts, settings):
    more = write_jsonl(tmp_path / "more.jsonl", texts + make_texts(200, seed=5))
    larger = stored(build(BuildConfig(sources=(str(more),), output=tmp_path / "d", **settings), progress=False))
    for name, part in stored(dataset).items():
        assert set(part) <= set(larger[name])


def test_duplicates_and_rejects_are_dropped_and_counted(tmp_path, texts, settings, dataset):
    first = write_jsonl(tmp_path / "a.jsonl", [*texts, "too short", "\x00" * 200, texts[0] + " \r\n\n"])
    second = write_jsonl(tmp_path / "b.jsonl", texts[:50])
    result = build(BuildConfig(sources=(str(first), str(second)), output=tmp_path / "d", **settings), progress=False)
    report = result.index.report
    assert report["documents_read"] == 453
    assert report["documents_kept"] == 400
    assert report["duplicates"] == 51
    assert report["rejected"] == {"too_short": 2, "not_text": 0}
    assert report["sources"][str(first)]["duplicates"] == 1  # the first source in sorted order keeps its copy
    assert report["sources"][str(second)]["documents_kept"] == 0
    assert result.hash == dataset.hash


def test_a_second_build_is_up_to_date_and_a_changed_one_refused(tmp_path, corpus, settings):
    config = BuildConfig(sources=(str(corpus),), output=tmp_path / "d", **settings)
    first = build(config, progress=False)
    before = (tmp_path / "d" / "index.json").stat().st_mtime_ns
    assert build(config, progress=False).hash == first.hash
    assert (tmp_path / "d" / "index.json").stat().st_mtime_ns == before
    for change in ({"salt": 1}, {"block_tokens": 800}, {"tokenizer": TokenizerConfig(vocab_size=500)}):
        with pytest.raises(DataError, match="was not built from these sources"):
            build(config.model_copy(update=change), progress=False)
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="exists and was not built"):
        build(config.model_copy(update={"output": tmp_path / "file"}), progress=False)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_changed_source_is_noticed(tmp_path, texts, settings):
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    config = BuildConfig(sources=(str(path),), output=tmp_path / "d", **settings)
    build(config, progress=False)
    write_jsonl(path, texts[1:])
    with pytest.raises(DataError, match="was not built from these sources"):
        build(config, progress=False)


def test_salt_changes_only_the_split(tmp_path, corpus, settings, dataset):
    salted = build(BuildConfig(sources=(str(corpus),), output=tmp_path / "d", salt=9, **settings), progress=False)
    ours, theirs = stored(salted), stored(dataset)
    assert ours["validation"] != theirs["validation"]
    assert sorted(chain(*ours.values())) == sorted(chain(*theirs.values()))


def test_source_limit_takes_the_beginning(tmp_path, corpus, texts, settings):
    limit = 100_000
    config = BuildConfig(sources=(str(corpus),), output=tmp_path / "d", max_source_bytes=limit, **settings)
    report = build(config, progress=False).index.report
    assert limit - 5000 < report["bytes_read"] <= limit
    assert report["bytes_read"] == sum(len(text.encode()) for text in texts[: report["documents_read"]])


def test_existing_tokenizer_is_used(tmp_path, built, dataset, texts, settings):
    source = write_jsonl(tmp_path / "a.jsonl", texts[:300])
    options = settings | {"tokenizer": TokenizerConfig(model=built / "tokenizer.model")}
    result = build(BuildConfig(sources=(str(source),), output=tmp_path / "d", **options), progress=False)
    assert result.tokenizer_hash == dataset.tokenizer_hash
    assert result.hash != dataset.hash


def test_block_size_is_chosen_for_small_corpora(tmp_path, corpus, settings):
    options = settings | {"block_tokens": None}
    result = build(BuildConfig(sources=(str(corpus),), output=tmp_path / "d", **options), progress=False)
    assert result.index.block_tokens == 1024


def test_block_size_is_chosen_for_many_blocks(monkeypatch, tmp_path, corpus, settings):
    monkeypatch.setattr(layout_module, "SMALLEST_BLOCK", 16)
    monkeypatch.setattr(layout_module, "WANTED_BLOCKS", 100)
    options = settings | {"block_tokens": None}
    result = build(BuildConfig(sources=(str(corpus),), output=tmp_path / "d", **options), progress=False)
    train = result.split("train")
    assert abs(result.index.block_tokens / (train.tokens / 100) - 1) < 0.05


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([LONG], {"validation_fraction": 0.5, "test_fraction": 0.499}, "train got none of the 1 documents"),
        ([], {}, "no document is left of the 0 read"),
        (["short"] * 3, {}, r"no document is left of the 3 read .*too_short 3"),
        (
            [LONG],
            {"test_fraction": 0.0, "validation_fraction": 0.001},
            "the validation split got none of the 1",
        ),
        (make_texts(30), {"tokenizer": TokenizerConfig(vocab_size=60_000)}, "larger than this text supports"),
    ],
)
def test_hopeless_builds_leave_one_sentence_and_nothing_else(tmp_path, texts, options, message):
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    options = {"validation_fraction": 0.2, "test_fraction": 0.2} | options
    with pytest.raises(DataError, match=message):
        build(BuildConfig(sources=(str(source),), output=tmp_path / "d", **options), progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_left_out_splits_are_named(tmp_path, corpus, settings):
    options = settings | {"validation_fraction": 0.0, "test_fraction": 0.0}
    result = build(BuildConfig(sources=(str(corpus),), output=tmp_path / "d", **options), progress=False)
    assert result.split_names == ("train",)
    with pytest.raises(DataError, match="has no split 'validation', only train"):
        result.split("validation")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("where", ["spool._RunWriter.add", "encode._SplitFiles.add", "shards.HashingFile.write"])
def test_full_disk_is_one_sentence_and_the_build_goes_on_later(
    tmp_path, built, corpus, settings, monkeypatch, where, number
):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    config = BuildConfig(sources=(str(corpus),), output=tmp_path / "d", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(f"data_pipeline.{where}", fail)
        with pytest.raises(DataError, match=r"the disk of .* is full, so .* was not built"):
            build(config, progress=False)
        assert [p.name for p in tmp_path.iterdir()] == [".d.building"]
    build(config, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert contents(tmp_path / "d") == contents(built)


def test_index_is_canonical_json_and_holds_no_paths_of_the_output(built):
    text = (built / "index.json").read_text(encoding="utf-8")
    assert json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n" == text
    assert str(built) not in text


def test_progress_goes_to_standard_error(tmp_path, corpus, settings, capfd):
    build(BuildConfig(sources=(str(corpus),), output=tmp_path / "d", **settings), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "400 documents" in err
    assert "train tokenizer" in err


@pytest.mark.parametrize(
    "options",
    [
        {"sources": ()},
        {"validation_fraction": 0.6, "test_fraction": 0.4},
        {"blocktokens": 3},
        {"tokenizer": {"vocab_size": 100}},
        {"tokenizer": {"kind": "word"}},
    ],
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ValidationError):
        BuildConfig(**({"sources": ("a.txt",), "output": "x"} | options))
