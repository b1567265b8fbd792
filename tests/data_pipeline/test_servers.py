"""Real servers on loopback: nginx, and S3 by boto3 against moto and against an S3-like server that misbehaves."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from data_pipeline.loader import Loader
from data_pipeline.remote import RetryPolicy
from data_pipeline.storage import open_storage
from tests.data_pipeline.fault_server import FaultServer
from tests.data_pipeline.test_storage import blocks_of, equal, quick

NEEDS_S3 = "needs boto3 (the extra [s3])"


@pytest.fixture(scope="module")
def expected(built):
    with Dataset.open(built) as dataset:
        return blocks_of(dataset)


@pytest.fixture
def s3_like(built, tmp_path, monkeypatch):
    """A fault server that answers path-style requests for s3://bucket/corpus."""
    pytest.importorskip("boto3", reason=NEEDS_S3)
    shutil.copytree(built, tmp_path / "bucket" / "corpus")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with FaultServer(tmp_path) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


def open_s3(location="s3://bucket/corpus", **options):
    return Dataset.open(location, storage=open_storage(location, quick(**options)), cache_bytes=1)


def test_s3_without_boto3_is_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    with pytest.raises(DataError, match=r"pip install 'pha-pretrain\[s3\]'"):
        open_storage("s3://bucket/corpus")


def test_s3_reads_the_same_blocks_and_public_buckets_are_asked_without_a_signature(s3_like, expected):
    with open_s3() as dataset:
        assert equal(blocks_of(dataset), expected)
    assert all("authorization" not in headers for headers in s3_like.headers)


def test_s3_credentials_come_from_the_environment(s3_like, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    with open_s3() as dataset:
        dataset.split("train").read_block(0)
    assert all("Credential=AKIDEXAMPLE/" in headers["authorization"] for headers in s3_like.headers)


@pytest.mark.parametrize("fault", ["cut", "stall", "reset", "busy", "etag", "flip", "short", "whole", "slow"])
def test_s3_faults_heal(s3_like, expected, fault):
    with open_s3() as dataset:
        s3_like.faults.append(fault)
        assert equal([dataset.split("train").read_block(0)], expected[:1])
        assert s3_like.seen[fault] == 1


@pytest.mark.parametrize("fault", ["denied", "gone", "range", "cut", "busy", "reset"])
def test_s3_faults_that_last_are_one_sentence(s3_like, fault):
    with open_s3(tries=2) as dataset:
        s3_like.always = fault
        with pytest.raises(DataError, match=r"s3://bucket/corpus/train-000000\.tar") as error:
            dataset.split("train").read_block(0)
        assert "\n" not in str(error.value)
        assert s3_like.seen[fault] == (1 if fault in ("denied", "gone", "range") else 2)


def start_moto(monkeypatch, built):
    """Moto's server, and a client with which ``s3://bucket/corpus`` has been filled."""
    boto3 = pytest.importorskip("boto3", reason=NEEDS_S3)
    moto = pytest.importorskip("moto.server", reason="needs moto[s3]")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    for file in sorted(p for p in built.rglob("*") if p.is_file()):
        client.put_object(Bucket="bucket", Key=f"corpus/{file.relative_to(built).as_posix()}", Body=file.read_bytes())
    return server, client


def test_s3_of_moto(built, expected, monkeypatch, tmp_path):
    server, client = start_moto(monkeypatch, built)
    try:
        for _ in range(2):
            with Dataset.open("s3://bucket/corpus", cache_dir=tmp_path) as dataset:
                assert equal(blocks_of(dataset), expected)
        assert dataset.disk_cache.counters["misses"] == 0
        with pytest.raises(DataError, match="has no index"):
            Dataset.open("s3://bucket/elsewhere")
        with open_s3() as dataset:
            dataset.split("train").read_block(0)
            client.put_object(Bucket="bucket", Key="corpus/train-000000.tar", Body=b"other" * 100_000)
            with pytest.raises(DataError, match="was replaced while it was being read"):
                dataset.split("train").read_block(1)
    finally:
        server.stop()


# --- servers that die in the middle of an epoch

#: Seconds that a server is away: longer than several tries at reading.
AWAY = 0.4


def epoch_of(dataset, interrupt=None):
    """The tokens of the shuffled epoch of train; `interrupt` is called in the middle of it."""
    loader = Loader(dataset.split("train"), seq_len=64, global_batch=4, prefetch=0)
    starts = range(0, loader.order.sequences_per_epoch, 4)
    batches = []
    for first in starts:
        if interrupt is not None and first == starts[len(starts) // 2]:
            interrupt()
        batches.append(loader.read(first).tokens)
    return batches


def survives_a_restart(location, dataset, kill, start):
    """Reads the epoch through a kill and, after a while, a restart; compares it with the one from disk."""
    policy = RetryPolicy(tries=60, stall_s=2.0, first_delay_s=0.05, longest_delay_s=0.1)
    back = threading.Timer(AWAY, start)

    def interrupt():
        kill()
        back.start()

    try:
        with Dataset.open(location, storage=open_storage(location, policy)) as far:
            assert equal(epoch_of(far, interrupt), epoch_of(dataset))
            assert far.storage.counters["fault_connection"] > 1
    finally:
        back.join()


def test_an_epoch_survives_a_restart_of_moto(built, dataset, monkeypatch):
    first, _ = start_moto(monkeypatch, built)
    host, port = first.get_host_and_port()
    # The objects live in this process and outlast the server; the port is free again when it has stopped.
    second = type(first)(ip_address=host, port=port, verbose=False)
    survives_a_restart("s3://bucket/corpus", dataset, first.stop, second.start)
    second.stop()


def test_an_epoch_survives_the_kill_of_an_s3_like_server(s3_like, tmp_path, dataset):
    port = int(s3_like.url.rpartition(":")[2])
    second = FaultServer(tmp_path, port=port)
    survives_a_restart("s3://bucket/corpus", dataset, s3_like.kill, second.__enter__)
    assert second.seen["GET"] > 0
    second.__exit__()


class Nginx:
    """A real nginx that serves a directory from a free port, kept when it is started again."""

    def __init__(self, root, folder):
        self.program = (
            shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin") or pytest.skip("nginx is not installed")
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        temporary = []
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
            (folder / name).mkdir()
            temporary.append(f"{name}_temp_path {folder / name};")
        self.config = folder / "nginx.conf"
        self.config.write_text(
            f"user root; daemon off; pid {folder}/pid; error_log stderr; events {{}}\n"
            f"http {{ access_log off; {' '.join(temporary)}\n"
            f"server {{ listen 127.0.0.1:{self.port}; root {root}; }} }}\n",
            encoding="utf-8",
        )

    def start(self):
        command = [self.program, "-c", str(self.config), "-p", str(self.config.parent)]
        # A session of its own, so that a kill reaches the workers too.
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@pytest.fixture
def nginx(built, tmp_path):
    server = Nginx(built, tmp_path)
    server.start()
    yield server
    server.kill()


def test_nginx(nginx, expected):
    with Dataset.open(nginx.url) as dataset:
        assert equal(blocks_of(dataset), expected)
        assert not any(kind.startswith(("fault", "whole")) for kind in dataset.storage.counters)


def test_an_epoch_survives_the_kill_of_nginx(nginx, dataset):
    survives_a_restart(nginx.url, dataset, nginx.kill, nginx.start)
