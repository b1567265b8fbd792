from __future__ import annotations

import json
import re
import threading

import numpy as np
import pytest

from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def is_one_sentence(error):
    text = str(error)
    return "\n" not in text and text.endswith(".") and len(text) < 500


def missing_shard(copy):
    (copy / "train-000001.tar").unlink()
    return r"shard .*train-000001\.tar is missing: .*rebuild with pha data build"


def truncated_shard(copy):
    path = copy / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    return r"shard .*train-000001\.tar has \d+ bytes instead of \d+: .*rebuild"


def deleted_index(copy):
    (copy / "index.json").unlink()
    return r"has no index\.json"


def garbled_index(copy):
    (copy / "index.json").write_text('{"format_version": 1', encoding="utf-8")
    return r"index\.json is damaged"


def future_index(copy):
    index = json.loads((copy / "index.json").read_text(encoding="utf-8"))
    (copy / "index.json").write_text(json.dumps(index | {"format_version": 2}), encoding="utf-8")
    return r"another version \(format_version: "


def escaping_index(copy):
    text = (copy / "index.json").read_text(encoding="utf-8")
    (copy / "index.json").write_text(text.replace("train-000000.tar", "../train-000000.tar"), encoding="utf-8")
    return r"index\.json is damaged"


def wrong_tokenizer(copy):
    flip(copy / "tokenizer.model", 1000)
    return r"tokenizer\.model is not the file that the dataset was built with"


def missing_tokenizer(copy):
    (copy / "tokenizer.model").unlink()
    return r"tokenizer\.model cannot be read"


def missing_table(copy):
    (copy / "index" / "train.blocks.npy").unlink()
    return r"train\.blocks\.npy cannot be read"


def flipped_table(copy):
    flip(copy / "index" / "validation.blocks.npy", -3)
    return r"validation\.blocks\.npy is not the file"


DAMAGES = [
    missing_shard,
    truncated_shard,
    deleted_index,
    garbled_index,
    future_index,
    escaping_index,
    wrong_tokenizer,
    missing_tokenizer,
    missing_table,
    flipped_table,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damage_is_found_on_opening(copy, damage):
    Dataset.open(copy).close()  # the copy is sound
    message = damage(copy)
    with pytest.raises(DataError, match=message) as error:
        Dataset.open(copy)
    assert is_one_sentence(error.value)


def test_a_damaged_documents_table_is_found_where_it_is_used(copy):
    flip(copy / "index" / "validation.documents.npy", -3)
    with Dataset.open(copy) as dataset:
        dataset.split("validation").read_block(0)
        with pytest.raises(DataError, match=r"validation\.documents\.npy is not the file") as error:
            next(dataset.split("validation").iter_documents())
        assert is_one_sentence(error.value)


def test_no_dataset_at_all(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        Dataset.open(tmp_path / "nothing")


def test_every_flipped_bit_in_a_block_is_found(copy):
    with Dataset.open(copy) as dataset:
        row = dataset.split("train").blocks[3]
        shard = dataset.split("train").info.shards[int(row["shard"])].name
        offset, size = int(row["offset"]), int(row["bytes"])
    for position in (offset, offset + size // 2, offset + size - 1):
        flip(copy / shard, position)
        with Dataset.open(copy) as dataset:
            split = dataset.split("train")
            split.read_block(2)
            with pytest.raises(DataError, match=rf"{re.escape(shard)}: block 3 is corrupt .*rebuild") as error:
                split.read_block(3)
            assert is_one_sentence(error.value)
        flip(copy / shard, position)
    with Dataset.open(copy) as dataset:
        dataset.split("train").read_block(3)


def test_damage_after_opening_is_found_on_reading(copy):
    with Dataset.open(copy) as dataset:
        split = dataset.split("validation")
        path = copy / "validation-000000.tar"
        path.write_bytes(path.read_bytes()[:700])
        with pytest.raises(DataError, match=r"validation-000000\.tar is cut short: block 0 is incomplete: .*rebuild"):
            split.read_block(0)
        (copy / "train-000000.tar").unlink()
        with pytest.raises(DataError, match=r"train-000000\.tar is missing: block \d+ is incomplete"):
            dataset.split("train").read_block(0)


def test_properties(dataset, built):
    assert dataset.path == built
    assert dataset.split_names == ("train", "validation", "test")
    assert dataset.tokenizer().hash == dataset.tokenizer_hash
    assert (dataset.vocab_size, dataset.bos_id) == (600, 1)
    assert re.fullmatch("[0-9a-f]{64}", dataset.hash)
    with pytest.raises(DataError, match="has no split 'dev', only train, validation, test"):
        dataset.split("dev")


def test_blocks_are_read_only_and_bounded(dataset):
    split = dataset.split("train")
    with pytest.raises(ValueError, match="read-only"):
        split.read_block(0)[0] = 1
    for bad in (-1, len(split.blocks)):
        with pytest.raises(IndexError):
            split.read_block(bad)


def test_small_cache_and_few_descriptors_change_nothing(built, monkeypatch):
    monkeypatch.setattr("data_pipeline.storage._OPEN_FILES", 1)
    with Dataset.open(built) as usual, Dataset.open(built, cache_bytes=3000) as tight:
        ours, theirs = usual.split("train"), tight.split("train")
        for number in [0, len(ours.blocks) - 1, 1, 0, len(ours.blocks) // 2]:
            assert np.array_equal(ours.read_block(number), theirs.read_block(number))
        assert len(tight._reader._blocks) < 3
        assert len(tight.storage._files) == 1


def test_closing_twice_and_reading_after_it(dataset):
    split = dataset.split("train")
    first = split.read_block(0).copy()
    dataset.close()
    dataset.close()
    assert np.array_equal(split.read_block(0), first)  # files are opened again when needed


def test_threads_share_a_split(built):
    with Dataset.open(built, cache_bytes=1) as dataset:
        split = dataset.split("train")
        expected = [split.read_block(i).copy() for i in range(len(split.blocks))]
        wrong = []

        def work(step):
            for i in range(300):
                number = i * step % len(expected)
                if not np.array_equal(split.read_block(number), expected[number]):
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(step,)) for step in (1, 3, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
