"""Datasets that grow, datasets that are joined, and looking one document up."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline import show as show_module
from data_pipeline.append import append
from data_pipeline.build import build
from data_pipeline.build_plan import locked
from data_pipeline.clean import normalise
from data_pipeline.config import BuildConfig, TokenizerConfig
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from data_pipeline.merge import merge
from data_pipeline.show import show
from data_pipeline.split import document_hash, split_of
from data_pipeline.verify import verify

from .conftest import make_texts, write_jsonl
from .test_build import contents, stored


@pytest.fixture(scope="module")
def more():
    return make_texts(120, seed=11)


def test_append_adds_what_is_new_and_touches_nothing_old(copy, texts, more, tmp_path):
    before = contents(copy)
    with Dataset.open(copy) as old:
        parts, hash_, shards = stored(old), old.hash, len(old.split("train").info.shards)
        source = write_jsonl(tmp_path / "more.jsonl", [*texts[:30], *more, *more[:5], "short"])
        grown = append(copy, [str(source)], progress=False)
        # who has the old index open reads on
        assert stored(old) == parts
    assert grown.hash != hash_
    found = stored(grown)
    for name, part in parts.items():
        assert found[name][: len(part)] == part
        added = sorted(t for t in map(normalise, more) if split_of(document_hash(t), 0.1, 0.1) == name)
        assert sorted(found[name][len(part) :]) == added
    after = contents(copy)
    assert all(after[name] == data for name, data in before.items() if name != "index.json")
    assert f"train-{shards:06d}.tar" in after
    report = grown.index.report
    assert (report["documents_kept"], report["duplicates"]) == (520, 35)
    assert report["sources"][str(source)]["rejected"]["too_short"] == 1
    assert verify(copy).problems == []
    assert not list(copy.parent.glob(".*"))


def test_append_of_known_documents_changes_nothing(copy, corpus):
    before = contents(copy)
    assert append(copy, [str(corpus)], progress=False).index.report["documents_kept"] == 400
    assert contents(copy) == before


def test_append_twice_is_no_different_from_the_order_of_time(copy, more, tmp_path):
    for number in range(2):
        append(copy, [str(write_jsonl(tmp_path / f"{number}.jsonl", more[number::2]))], progress=False).close()
    with Dataset.open(copy) as grown:
        found = stored(grown)
    assert sum(map(len, found.values())) == 520
    assert len({text for part in found.values() for text in part}) == 520
    assert verify(copy).problems == []


def test_append_to_sources_with_settings_keeps_them(tmp_path, texts, more, settings):
    first, second = (write_jsonl(tmp_path / f"{n}.jsonl", part) for n, part in enumerate((texts, more)))
    named = {"spec": str(first), "weight": 0.75}
    build(BuildConfig(sources=(named,), output=tmp_path / "d", **settings), progress=False).close()
    with append(tmp_path / "d", [str(second)], progress=False) as grown:
        assert grown.index.config["sources"] == [named, str(second)]
        assert set(grown.index.report["sources"]) == {str(first), str(second)}
        assert grown.index.report["sources"][str(second)]["documents_kept"] == 120
    with append(tmp_path / "d", [str(first)], progress=False) as whole:  # now without the weight
        assert whole.index.config["sources"] == [str(first), named, str(second)]
        assert whole.index.report["documents_kept"] == 520


def test_a_failed_append_leaves_the_old_dataset(copy, more, tmp_path, monkeypatch):
    before = contents(copy)
    source = write_jsonl(tmp_path / "more.jsonl", more)

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.append.write_atomically", fail)
        with pytest.raises(DataError, match="it is unchanged: check the disk"):
            append(copy, [str(source)], progress=False)
    index = (copy / "index.json").read_bytes()
    assert index == before["index.json"]
    assert verify(copy).problems == []  # shards that no index names are no part of it
    with pytest.raises(DataError, match=r"matches no file"):
        append(copy, [str(tmp_path / "none.jsonl")], progress=False)
    with locked(tmp_path / f".{copy.name}.appending", "alone"), pytest.raises(DataError, match="in use by another"):
        append(copy, [str(source)], progress=False)
    append(copy, [str(source)], progress=False).close()
    assert verify(copy).problems == []


def test_an_appended_dataset_is_no_longer_the_build_of_its_sources(tmp_path, corpus, more, settings):
    config = BuildConfig(sources=(str(corpus),), output=tmp_path / "d", **settings)
    build(config, progress=False).close()
    append(tmp_path / "d", [str(write_jsonl(tmp_path / "more.jsonl", more))], progress=False).close()
    with pytest.raises(DataError, match="was not built from these sources"):
        build(config, progress=False)


@pytest.fixture(scope="module")
def parts(tmp_path_factory, texts, more, settings, built):
    """Three datasets of the same tokenizer that overlap; the third holds out others, and has grown."""
    folder = tmp_path_factory.mktemp("parts")
    base = settings | {"tokenizer": TokenizerConfig(model=built / "tokenizer.model")}
    for name, chosen, options in (
        ("a", texts[:250], base),
        ("b", texts[200:], base),
        ("c", texts[300:330] + more[:60], base | {"salt": 5}),
    ):
        source = write_jsonl(folder / f"{name}.jsonl", chosen)
        build(BuildConfig(sources=(str(source),), output=folder / name, **options), progress=False).close()
    append(folder / "c", [str(write_jsonl(folder / "later.jsonl", more[60:]))], progress=False).close()
    return folder


def test_merge_holds_every_document_once(parts, tmp_path, texts, more):
    merged = merge(tmp_path / "m", [parts / "a", parts / "b", parts / "c"], progress=False)
    found = stored(merged)
    together = [text for part in found.values() for text in part]
    assert sorted(together) == sorted(map(normalise, texts + more))
    strict = {"test": 0, "validation": 1, "train": 2}
    wanted = {}
    for name in "abc":
        with Dataset.open(parts / name) as dataset:
            for split, part in stored(dataset).items():
                for text in part:
                    wanted[text] = min(wanted.get(text, split), split, key=strict.__getitem__)
    assert {text: split for split, part in found.items() for text in part} == wanted
    hashes = [document_hash(text) for text in found["train"]]
    assert hashes == sorted(hashes)
    assert merged.index.report["duplicates"] == 250 + 200 + 150 - 520
    assert verify(tmp_path / "m").problems == []
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_merge_does_not_depend_on_order(parts, tmp_path):
    for name, order in (("x", "abc"), ("y", "cab")):
        merge(tmp_path / name, [parts / part for part in order], progress=False).close()
    assert contents(tmp_path / "x") == contents(tmp_path / "y")


def test_merge_refuses_what_does_not_fit(parts, tmp_path, corpus, settings):
    options = settings | {"tokenizer": TokenizerConfig(vocab_size=500)}
    build(BuildConfig(sources=(str(corpus),), output=tmp_path / "other", **options), progress=False).close()
    with pytest.raises(DataError, match="has another tokenizer than"):
        merge(tmp_path / "m", [parts / "a", tmp_path / "other"], progress=False)
    with pytest.raises(DataError, match="exists: merge into a new directory"):
        merge(tmp_path / "other", [parts / "a"], progress=False)
    with pytest.raises(DataError, match="nothing to merge"):
        merge(tmp_path / "m", [], progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["other"]
    merge(tmp_path / "m", [parts / "a"], progress=False).close()
    with pytest.raises(DataError, match="was merged from datasets"):
        append(tmp_path / "m", [str(corpus)], progress=False)


def test_a_damaged_block_stops_a_merge_and_leaves_nothing(parts, tmp_path):
    damaged = shutil.copytree(parts / "a", tmp_path / "damaged")
    with (damaged / "train-000000.tar").open("r+b") as file:
        file.seek(1500)
        file.write(b"\xff\xff\xff")
    with pytest.raises(DataError, match="is corrupt"):
        merge(tmp_path / "m", [damaged, parts / "b"], progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["damaged"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(number=st.integers(0, 399), digits=st.integers(9, 32))
def test_show_finds_a_document_by_number_and_by_hash(built, texts, number, digits):
    found = show(built, str(number))
    assert document_hash(found["text"]).hex() == found["hash"]
    assert found["text"] in set(map(normalise, texts))
    assert found["number"] == number
    assert found["split"] == split_of(bytes.fromhex(found["hash"]), 0.1, 0.1)
    assert found["bytes"] == len(found["text"].encode())
    prefix = found["hash"][:digits].upper()
    if not prefix.isdecimal():
        assert show(built, prefix) == found
    with Dataset.open(built) as dataset:
        split = dataset.split(found["split"])
        block = split.read_block(found["block"]).tolist()
        ids = dataset.tokenizer().encode(found["text"])
        assert found["tokens"] == len(ids)
        start = int(split.document_table["offset"][found["row"]])
        assert block[start : start + 1 + len(ids)] == [split.bos_id, *ids]
        assert split.info.shards[int(split.blocks["shard"][found["block"]])].name == found["shard"]


def test_show_refuses_what_is_not_there_or_not_one(built, monkeypatch):
    hashes = [show(built, str(number))["hash"] for number in range(60)]
    digit = max("abcdef", key=lambda d: sum(h.startswith(d) for h in hashes))
    monkeypatch.setattr(show_module, "_ROWS", 7)
    for wanted, message in (
        ("400", "its 400 documents are 0 to 399"),
        (digit, f"several documents whose hash begins with {digit}"),
        ("f" * 32, "no document whose hash begins"),
        ("a" * 33, "no document whose hash begins"),
        ("xyz", "is no document: give a number"),
        ("", "is no document"),
    ):
        with pytest.raises(DataError, match=message):
            show(built, wanted)
    assert show(built, hashes[50])["number"] == 50


def test_show_is_json(built):
    assert json.loads(json.dumps(show(built, "3")))["number"] == 3
