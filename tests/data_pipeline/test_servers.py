"""Real servers on loopback: nginx, and S3 by boto3 against moto and against an S3-like server that misbehaves."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time

import pytest

from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
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


def test_s3_of_moto(built, expected, monkeypatch, tmp_path):
    boto3 = pytest.importorskip("boto3", reason=NEEDS_S3)
    moto = pytest.importorskip("moto.server", reason="needs moto[server]")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        for file in sorted(p for p in built.rglob("*") if p.is_file()):
            client.put_object(
                Bucket="bucket", Key=f"corpus/{file.relative_to(built).as_posix()}", Body=file.read_bytes()
            )
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


def test_nginx(built, expected, tmp_path):
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("nginx is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for part in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
        (tmp_path / part).mkdir()
    temporary = " ".join(
        f"{name}_temp_path {tmp_path / part};"
        for name, part in zip(
            ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"),
            ("body", "proxy", "fastcgi", "uwsgi", "scgi"),
            strict=True,
        )
    )
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"user root; daemon off; pid {tmp_path}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port}; root {built}; }} }}\n",
        encoding="utf-8",
    )
    server = subprocess.Popen([program, "-c", str(config), "-p", str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        with Dataset.open(f"http://127.0.0.1:{port}") as dataset:
            assert equal(blocks_of(dataset), expected)
            assert not any(kind.startswith(("fault", "whole")) for kind in dataset.storage.counters)
    finally:
        server.terminate()
        server.wait(10)
