from __future__ import annotations

import tarfile

import numpy as np
import pytest
import webdataset

from data_pipeline.shards import SplitWriter


def write(directory, documents, **options):
    (directory / "index").mkdir(parents=True)
    defaults = {"dtype": "uint16", "bos_id": 1, "block_tokens": 10, "shard_bytes": 4000}
    writer = SplitWriter(directory, "train", **(defaults | options))
    for number, ids in enumerate(documents):
        writer.add(bytes([number % 256]) * 16, ids, text_bytes=len(ids), words=1)
    return writer.close()


def test_plain_webdataset_reads_the_same_tokens(built, dataset):
    for name in dataset.split_names:
        split = dataset.split(name)
        urls = [str(built / shard.name) for shard in split.info.shards]
        samples = list(webdataset.WebDataset(urls, shardshuffle=False))
        assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(len(split.blocks))]
        for number, sample in enumerate(samples):
            tokens = np.frombuffer(sample["bin"], dtype=dataset.index.dtype)
            assert np.array_equal(tokens, split.read_block(number))


def test_tar_members_are_anonymous_and_timeless(built, dataset):
    for shard in dataset.split("train").info.shards:
        with tarfile.open(built / shard.name, "r:") as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                assert member.isreg()


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_documents_are_never_cut(tmp_path, dtype):
    documents = [[2] * 3, [3] * 30, [], [4] * 9, [5]]
    info = write(tmp_path, documents, dtype=dtype)
    assert (info.documents, info.blocks, info.tokens) == (5, 3, 3 + 30 + 0 + 9 + 1 + 5)
    table = np.load(tmp_path / "index" / "train.documents.npy")
    assert table["offset"].tolist() == [0, 4, 0, 1, 0]
    assert table["tokens"].tolist() == [4, 31, 1, 10, 2]
    blocks = np.load(tmp_path / "index" / "train.blocks.npy")
    assert blocks["first_document"].tolist() == [0, 2, 4]
    assert blocks["bytes"].tolist() == [size * np.dtype(dtype).itemsize for size in (35, 11, 2)]
    assert not list((tmp_path / "index").glob("*.rows"))


def test_full_range_of_ids_survives(tmp_path):
    write(tmp_path / "a", [[65_535, 0]], dtype="uint16")
    write(tmp_path / "b", [[65_536, 2**32 - 1]], dtype="uint32")
    for name, dtype, expected in (("a", "<u2", [1, 65_535, 0]), ("b", "<u4", [1, 65_536, 2**32 - 1])):
        with tarfile.open(tmp_path / name / "train-000000.tar") as tar:
            data = tar.extractfile("000000000.bin").read()
        assert np.frombuffer(data, dtype=dtype).tolist() == expected
