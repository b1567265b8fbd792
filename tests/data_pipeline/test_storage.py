from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.batch import IGNORE
from data_pipeline.cache import BlockCache
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from data_pipeline.loader import Loader
from data_pipeline.remote import HttpTransport, RemoteStorage, RetryPolicy
from data_pipeline.storage import DamagedData, LocalStorage, open_storage
from tests.data_pipeline.fault_server import FaultServer
from tests.data_pipeline.test_verify import edit_table

ROOT = Path(__file__).resolve().parents[2]


def quick(tries=4, waits=None):
    sleep = (lambda s: None) if waits is None else waits.append
    return RetryPolicy(tries=tries, stall_s=0.3, transfer_s=0.6, random=random.Random(0).random, sleep=sleep)


def remote(url, **options):
    return RemoteStorage(url, HttpTransport(url, quick(**options)), quick(**options))


def blocks_of(dataset):
    return [dataset.split(n).read_block(b) for n in dataset.split_names for b in range(len(dataset.split(n).blocks))]


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def expected(built):
    with Dataset.open(built) as dataset:
        return blocks_of(dataset)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("pipe:cat /etc/passwd", "not a place"),
        ("ftp://host/x", "not a place"),
        ("http:/host/x", "not a place"),
        ("http://user:secret@host/x", "credentials come from the environment"),
        ("https://host/x?token=secret", "credentials come from the environment"),
        ("file://elsewhere/x", "this machine only"),
        ("s3:///x", "no bucket"),
    ],
)
def test_other_locations_are_refused_without_their_secrets(location, message):
    with pytest.raises(DataError, match=message) as error:
        open_storage(location)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../b", "", "a//b", ".hidden"])
def test_names_cannot_leave_the_location(built, name):
    with pytest.raises(DataError, match="not the name"):
        LocalStorage(built).read_range(name, 0, 1)


def test_a_file_url_is_its_directory(built, expected):
    with Dataset.open(built.as_uri()) as dataset:
        assert equal(blocks_of(dataset), expected)


def test_http_gives_the_same_batches_as_the_directory(built, dataset):
    with FaultServer(built) as server, Dataset.open(server.url, storage=remote(server.url)) as far:
        options = {"seq_len": 64, "global_batch": 4, "prefetch": 0}
        ours, theirs = Loader(far.split("train"), **options), Loader(dataset.split("train"), **options)
        for first in (0, 40, 10**6):
            assert np.array_equal(ours.read(first).tokens, theirs.read(first).tokens)
        assert far.tokenizer().hash == dataset.tokenizer_hash
        assert not any(kind.startswith("fault") for kind in far.storage.counters)


HEALED = {
    "cut": "fault_cut_off",
    "stall": "fault_timeout",
    "reset": "fault_connection",
    "busy": "fault_status",
    "etag": "fault_etag",
    "flip": "fault_checksum",
    "short": "fault_range",
    "whole": "whole_answers",
    "slow": "fault_timeout",
}


@pytest.mark.parametrize("fault", HEALED)
def test_a_passing_fault_heals_and_is_counted(built, expected, fault):
    with FaultServer(built) as server, Dataset.open(server.url, storage=remote(server.url)) as dataset:
        server.faults.extend([fault])
        split = dataset.split("train")
        found = [split.read_block(number) for number in range(3)]
        assert equal(found, expected[:3])
        assert server.seen[fault] == 1
        assert dataset.storage.counters[HEALED[fault]] == 1
        assert split.quarantined == []


@pytest.mark.parametrize("fault", [*sorted(set(HEALED) - {"whole"}), "denied", "gone", "range"])
def test_a_lasting_fault_is_one_sentence_after_bounded_tries(built, fault):
    with FaultServer(built) as server, Dataset.open(server.url, storage=remote(server.url, tries=2)) as dataset:
        server.always = fault
        with pytest.raises(DataError) as error:
            dataset.split("train").read_block(0)
        text = str(error.value)
        assert "\n" not in text and text.endswith(".") and "train-000000.tar" in text
        assert server.seen[fault] == (1 if fault in ("denied", "gone", "range") else 2)


def test_pauses_grow_and_respect_retry_after(built):
    waits = []
    with FaultServer(built) as server:
        storage = remote(server.url, tries=5, waits=waits)
        server.faults.extend(["reset", "reset", "reset", "busy"])
        storage.read_range("train-000000.tar", 0, 10)
    assert [0.25, 0.5, 1.0] <= waits[:3] <= [0.5, 1.0, 2.0]
    assert waits[3] == 7.0


def test_a_file_that_is_replaced_while_it_is_read_stops(copy):
    with FaultServer(copy) as server, Dataset.open(server.url, storage=remote(server.url)) as dataset:
        path = copy / "train-000000.tar"
        path.write_bytes(path.read_bytes()[::-1])
        with pytest.raises(DataError, match="was replaced while it was being read"):
            dataset.split("train").read_block(0)


def test_fresh_reads_pass_caches_and_connections_are_kept(built):
    with FaultServer(built) as server:
        storage = remote(server.url)
        for fresh in (False, True):
            storage.read_range("train-000000.tar", 0, 100, fresh=fresh)
        assert [h.get("cache-control") for h in server.headers] == [None, "no-cache"]
        assert "if-match" in server.headers[1]
        assert storage._transport._pool.connection_from_url(server.url).num_connections == 1


# --- cache


def test_cached_blocks_need_no_server_and_damaged_ones_are_fetched_again(built, expected, tmp_path):
    with FaultServer(built) as server:
        for number in range(3):
            if number == 2:
                entry = max((tmp_path / "blocks").rglob("*"), key=lambda p: p.is_file())
                entry.write_bytes(entry.read_bytes()[:-1] + b"?")
            before = server.seen["GET"]
            with Dataset.open(server.url, storage=remote(server.url), cache_dir=tmp_path) as dataset:
                assert equal(blocks_of(dataset), expected)
                # the index is always fetched; tables, tokenizer and blocks only once
                assert server.seen["GET"] - before == {1: 1, 2: 2}.get(number, server.seen["GET"] - before)
                assert dataset.disk_cache.counters["damaged"] == (number == 2)


def test_cache_keeps_its_budget_and_the_recently_used(tmp_path):
    cache = BlockCache(tmp_path, 1000)
    crc = __import__("zlib").crc32(b"x" * 100)
    keys = [BlockCache.key("place", number) for number in range(30)]
    cache.put(keys[0], b"x" * 100)
    for key in keys[1:]:
        cache.put(key, b"x" * 100)
        assert cache.get(keys[0], 100, crc) is not None  # used all the time, so it stays
        time.sleep(0.002)
        assert cache.size() <= 1000
    assert cache.get(keys[1], 100, crc) is None
    assert cache.get(keys[-1], 100, crc) is not None
    cache.put(BlockCache.key("large"), b"x" * 1001)
    assert cache.size() <= 1000


def test_a_cache_that_cannot_be_written_is_no_fault(tmp_path, caplog):
    cache = BlockCache(tmp_path, 1000)
    shutil.rmtree(tmp_path / "blocks")
    for number in range(2):
        cache.put(BlockCache.key(number), b"x")
    assert cache.counters["failures"] == 2
    assert caplog.text.count("reading goes on without it") == 1


WORKER = """
import random, sys
from pathlib import Path
from data_pipeline.dataset import Dataset
url, cache, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
with Dataset.open(url, cache_bytes=1, cache_dir=cache, cache_dir_bytes=40_000) as dataset:
    split = dataset.split("train")
    print("ready", flush=True)
    while True:
        split.read_block(rng.randrange(len(split.blocks)))
"""


def test_processes_share_a_cache_and_may_be_killed_at_any_moment(built, expected, tmp_path):
    rng = random.Random(5)
    with FaultServer(built) as server:

        def start(seed):
            command = [sys.executable, "-c", WORKER, server.url, str(tmp_path), str(seed)]
            return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

        workers = [start(seed) for seed in range(2)]
        try:
            for worker in workers:
                assert worker.stdout.readline() == b"ready\n"
            time.sleep(0.3 + rng.random() / 5)
            workers[0].send_signal(signal.SIGKILL)
            time.sleep(0.3)
            assert workers[1].poll() is None, workers[1].stderr.read()  # goes on beside the dead one
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()
        with Dataset.open(server.url, cache_dir=tmp_path, cache_dir_bytes=40_000, cache_bytes=1) as dataset:
            assert equal(blocks_of(dataset), expected)
            assert dataset.disk_cache.counters["damaged"] == 0
            assert dataset.disk_cache.size() <= 40_000 + 2 * 4_000  # and what the killed ones were writing


# --- policy


def damage(copy, number, bit=8):
    """Flip a bit in the middle of a block of train."""
    with Dataset.open(copy) as dataset:
        row = dataset.split("train").blocks[number]
        path = copy / dataset.split("train").info.shards[int(row["shard"])].name
    data = bytearray(path.read_bytes())
    data[int(row["offset"]) + int(row["bytes"]) // 2] ^= bit
    path.write_bytes(data)


@pytest.mark.parametrize("where", ["disk", "http"])
def test_quarantine_leaves_out_the_block_alike_and_nothing_else(copy, dataset, caplog, where):
    damage(copy, 3)
    sound = dataset.split("train")
    options = {"seq_len": 50, "global_batch": 4, "prefetch": 0, "shuffle": False, "lanes": 1}
    with FaultServer(copy) as server:
        storage = remote(server.url) if where == "http" else None
        with Dataset.open(copy, storage=storage, on_damage="quarantine") as damaged:
            split = damaged.split("train")
            start = int(sound.block_tokens[:3].sum())
            end = start + int(sound.block_tokens[3])
            for first in range(0, end // 50 + 8, 4):
                ours = Loader(split, **options).read(first)
                ranks = [Loader(split, **options, rank=r, world=2).read(first) for r in (0, 1)]
                theirs = Loader(sound, **options).read(first)
                places = first * 50 + np.arange(200).reshape(4, 50)  # of the inputs in the epoch's stream
                lost = (places >= start) & (places < end)
                no_label = lost | (places == start - 1)
                assert np.array_equal(ours.tokens, np.where(lost, split.bos_id, theirs.tokens))
                assert np.array_equal(ours.labels, np.where(no_label, IGNORE, theirs.labels))
                assert np.array_equal(np.concatenate([r.labels for r in ranks]), ours.labels)
            (record,) = split.quarantined
            assert (record["block"], record["tokens"], record["split"]) == (3, end - start, "train")
            assert "checksum" in record["reason"]
            assert caplog.text.count("Quarantined block 3") == 1


def test_too_many_damaged_blocks_stop_all_the_same(copy):
    for number in range(9):
        damage(copy, number)
    with Dataset.open(copy, on_damage="quarantine") as dataset:
        split = dataset.split("train")
        for number in range(8):
            assert set(split.read_block(number)) == {split.bos_id}
        with pytest.raises(DataError, match="already quarantined"):
            split.read_block(8)


def test_an_unreachable_server_is_never_quarantined(built):
    storage_of = {"tries": 2}
    with FaultServer(built) as server:
        storage = remote(server.url, **storage_of)
        with Dataset.open(server.url, storage=storage, on_damage="quarantine") as dataset:
            server.always = "busy"
            with pytest.raises(DataError, match="could not be read in 2 tries") as error:
                dataset.split("train").read_block(0)
            assert not isinstance(error.value, DamagedData)
            assert dataset.split("train").quarantined == []


FORGERIES = {
    "beyond the end": lambda t: t["offset"].__setitem__(1, 2**64 - 8),
    "larger": lambda t: t["bytes"].__setitem__(0, 2**63),
    "not listed": lambda t: t["shard"].__setitem__(0, 99),
    "bytes each": lambda t: t["tokens"].__setitem__(0, 2**62),
    "not in order": lambda t: t["first_document"].__setitem__(1, 2**63),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_forged_blocks_table_is_refused_though_all_hashes_fit(copy, what):
    edit_table(copy, "train.blocks.npy", FORGERIES[what])
    with pytest.raises(DataError, match=r"train\.blocks\.npy is damaged or forged"):
        Dataset.open(copy)
