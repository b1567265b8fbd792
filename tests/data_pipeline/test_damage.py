"""A thousand random damages to stored files and to answers of a server: each is healed or told, none is silent."""

from __future__ import annotations

import random

import numpy as np

from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from tests.data_pipeline.fault_server import FAULTS, FaultServer
from tests.data_pipeline.test_storage import remote

ON_DISK, ON_THE_WAY = 700, 300


def content(dataset):
    """All that a reader can get out of the splits."""
    found = []
    for name in dataset.split_names:
        split = dataset.split(name)
        found.append((name, split.documents, split.tokens, split.bytes, split.words, split.block_tokens.tobytes()))
        found.extend(split.read_block(number).tobytes() for number in range(len(split.blocks)))
        found.append(split.document_table.tobytes())
    return found


def spoil(data, rng):
    """The bytes with one random damage, never the same bytes."""
    data = bytearray(data)
    kind = rng.choice(["bit", "bit", "byte", "zeros", "cut", "longer", "moved", "empty"])
    at = rng.randrange(len(data))
    size = rng.choice([1, 16, 512, 4096])
    before = bytes(data)
    if kind == "bit":
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        data[at] = rng.randrange(256)
    elif kind == "zeros":
        data[at : at + size] = bytes(len(data[at : at + size]))
    elif kind == "cut":
        del data[at:]
    elif kind == "longer":
        data += rng.randbytes(size)
    elif kind == "moved":
        del data[at : at + size]
        data += bytes(len(before) - len(data))
    else:
        data.clear()
    if bytes(data) == before:
        data[at] ^= 1
    return bytes(data)


def test_no_damage_on_disk_is_silent(copy):
    rng = random.Random(1)
    files = sorted(p for p in copy.rglob("*") if p.is_file() and p.name != "build.json")
    originals = {file: file.read_bytes() for file in files}
    with Dataset.open(copy) as dataset:
        expected, identity = content(dataset), dataset.hash
    told = 0
    for _ in range(ON_DISK):
        # tables and index are small and many shards are alike, so choose the file first
        file = rng.choice(files)
        if rng.random() < 0.03:
            file.unlink()
        else:
            file.write_bytes(spoil(originals[file], rng))
        try:
            with Dataset.open(copy) as dataset:
                assert content(dataset) == expected, file  # only padding and headers of a tar may change unseen
                assert dataset.hash == identity
        except DataError as error:
            told += 1
            assert "\n" not in str(error)
            assert str(error).endswith(".")
        file.write_bytes(originals[file])
    assert told > ON_DISK * 0.8


def test_no_fault_on_the_way_is_silent(built, dataset):
    rng = random.Random(2)
    sound = dataset.split("train")
    kinds = [fault for fault in FAULTS if fault not in ("stall", "slow")]  # these take time; tested one by one
    told = healed = 0
    with FaultServer(built) as server:
        for _ in range(ON_THE_WAY // 30):
            storage = remote(server.url, tries=4)
            with Dataset.open(server.url, storage=storage, cache_bytes=1) as far:
                for _ in range(30):
                    server.faults.clear()
                    server.faults.extend(rng.choices(kinds, k=rng.choice([1, 1, 2, 3, 4, 6])))
                    number = rng.randrange(len(sound.blocks))
                    before = sum(server.seen[fault] for fault in FAULTS)
                    try:
                        assert np.array_equal(far.split("train").read_block(number), sound.read_block(number))
                        healed += 1
                    except DataError as error:
                        told += 1
                        assert str(error).endswith(".")
                    # a block that was still in memory met no fault; count such a draw as none
                    healed -= sum(server.seen[fault] for fault in FAULTS) == before
    assert told > 50
    assert healed > 50
