"""Sources behind URLs: the same documents as from the same files on disk, whatever the servers do on the way."""

from __future__ import annotations

import errno
import glob
import gzip
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_pipeline.build import build
from data_pipeline.build_plan import fingerprint_of, work_directory
from data_pipeline.config import BuildConfig, CleanConfig, DecontaminateConfig
from data_pipeline.errors import DataError, Interrupted
from data_pipeline.schema import BUILD_FILE, INDEX_FILE
from data_pipeline.sources import (
    Part,
    SourceConfig,
    describe_source,
    plan_parts,
    read_documents,
    read_part,
    remote_files,
)
from tests.data_pipeline.conftest import make_texts, write_jsonl
from tests.data_pipeline.fault_server import FaultServer
from tests.data_pipeline.test_servers import NEEDS_S3, start_moto
from tests.data_pipeline.test_source_formats import EXPECTED, SAMPLES, make_tar
from tests.data_pipeline.test_storage import quick

NAMES = ("a.jsonl", "b c.jsonl.zst", "d.parquet", "e/f.tar", "e/g.txt", "e/deep/h.jsonl", "e.jsonl")


@pytest.fixture
def bucket(tmp_path):
    """The folder of a bucket with files of several formats, some that are none, and some that are hidden."""
    folder = tmp_path / "bucket" / "data"
    (folder / "e" / "deep").mkdir(parents=True)
    write_jsonl(folder / "a.jsonl", make_texts(30, seed=1))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in make_texts(20, seed=2))
    (folder / "b c.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    pq.write_table(pa.table({"text": make_texts(20, seed=3)}), folder / "d.parquet")
    (folder / "e" / "f.tar").write_bytes(make_tar(SAMPLES))
    (folder / "e" / "g.txt").write_text("\n\n".join(make_texts(300, seed=4)), encoding="utf-8")
    write_jsonl(folder / "e" / "deep" / "h.jsonl", make_texts(10, seed=5), start=100)
    write_jsonl(folder / "e.jsonl", make_texts(10, seed=6), start=200)
    for name in ("_SUCCESS", "e/.part.jsonl", ".hidden.jsonl"):
        (folder / name).write_text("no source", encoding="utf-8")
    return folder.parent


@pytest.fixture
def server(bucket, monkeypatch):
    """Serves the bucket by HTTP as ``/bucket/data/...`` and to S3 as ``s3://bucket/data/...``."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(remote_files, "POLICY", quick())
    monkeypatch.setattr(remote_files, "PIECE", 5000)  # so that files come in several
    with FaultServer(bucket.parent, only="jsonl") as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


def heard(documents, base, folder):
    """Ids and texts, with the ids that they would have on disk."""
    return [(d.id.replace(base, str(folder)), d.text) for d in documents]


@pytest.mark.parametrize(("kind", "name"), [*(("http", name) for name in NAMES), ("s3", NAMES[1]), ("s3", NAMES[2])])
def test_each_format_gives_what_the_local_file_gives(server, bucket, tmp_path, kind, name):
    if kind == "s3":
        pytest.importorskip("boto3", reason=NEEDS_S3)
    base = "s3://bucket" if kind == "s3" else f"{server.url}/bucket"
    url = f"{base}/data/{name if kind == 's3' else name.replace(' ', '%20')}"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    expected = [(d.id, d.text) for d in read_documents(str(bucket / "data" / name))]
    found = heard(read_documents(url, scratch), base, bucket)
    assert [(i.replace("%20", " "), t) for i, t in found] == expected
    (part,) = plan_parts(url, 100)
    assert (part.unit, part.bytes) == ("file", (bucket / "data" / name).stat().st_size)
    assert heard(read_part(Part.model_validate_json(part.model_dump_json()), scratch), base, bucket) == found
    assert list(scratch.iterdir()) == []


GLOBS = [
    "data/*.jsonl",
    "data/?.jsonl",
    "data/[a-d].*",
    "data/[!a-d]*",
    "data/**/*.jsonl",
    "data/**",
    "data/e/**/*.jsonl",
    "**/h.jsonl",
    "*/e/*",
    "data/*/deep/*",
    "data/b*",
    "data/[]a-c]*",
    "data/[!]]*",
    "data/[!z-a]*",
    "data/[a^]*",
    "data/[z-ab]*.zst",
    "data/[d--a-b]*",
]


def test_globs_match_what_they_match_on_disk_in_its_order(server, bucket):
    pytest.importorskip("boto3", reason=NEEDS_S3)
    server.page = 2
    for pattern in GLOBS:
        source = SourceConfig(spec=f"s3://bucket/{pattern}", format="text")
        found = [remote.url.removeprefix("s3://bucket/") for remote in remote_files.expand(source)]
        there = glob.glob(str(bucket / pattern), recursive=True)  # noqa: PTH207 - the model of ours
        expected = sorted(path for path in map(Path, there) if path.is_file())
        assert found == [path.relative_to(bucket).as_posix() for path in expected] and found, pattern


def test_a_range_without_members_matches_nothing(server):
    pytest.importorskip("boto3", reason=NEEDS_S3)
    with pytest.raises(DataError, match="matches no object"):
        remote_files.expand(SourceConfig(spec="s3://bucket/data/[z-a]*"))


def test_an_escaped_name_tells_format_and_compression(server, bucket):
    packed = gzip.compress((bucket / "data" / "a.jsonl").read_bytes())
    (bucket / "data" / "x.jsonl.gz").write_bytes(packed)
    server.encoding = "gzip"
    url = f"{server.url}/bucket/data/x%2Ejsonl%2Egz"
    assert [d.text for d in read_documents(url)] == make_texts(30, seed=1)
    (part,) = plan_parts(url, 1000)
    assert [d.text for d in read_part(part)] == make_texts(30, seed=1)


def test_a_server_without_versions_is_told_of_once(server, caplog):
    server.etags = False
    for name in ("a", "e", "a"):
        assert describe_source(f"{server.url}/bucket/data/{name}.jsonl")[0][2] == ""
    assert [r.getMessage() for r in caplog.records if "neither ETag nor Last-Modified" in r.message] == [
        f"{server.url} tells neither ETag nor Last-Modified of its files: one that is replaced by another of the same "
        "size counts as unchanged; rename files that change."
    ]
    pytest.importorskip("boto3", reason=NEEDS_S3)
    assert len(list(read_documents("s3://bucket/data/*.jsonl"))) == 40


def test_a_folder_is_all_below_it_with_a_known_format(server):
    pytest.importorskip("boto3", reason=NEEDS_S3)
    found = [
        remote.url.removeprefix("s3://bucket/data/")
        for remote in remote_files.expand(SourceConfig(spec="s3://bucket/data/"))
    ]
    assert found == ["a.jsonl", "b c.jsonl.zst", "d.parquet", "e/deep/h.jsonl", "e/f.tar", "e/g.txt", "e.jsonl"]
    everything = remote_files.expand(SourceConfig(spec="s3://bucket/", format="text"))
    assert len(everything) == len(found) + 1  # _SUCCESS
    assert [d.text for d in read_documents("s3://bucket/data/e/*.tar")] == EXPECTED


def test_a_key_with_signs_of_a_glob_is_itself(server, bucket):
    pytest.importorskip("boto3", reason=NEEDS_S3)
    shutil.copy(bucket / "data" / "a.jsonl", bucket / "data" / "x[1]*.jsonl")
    (remote,) = remote_files.expand(SourceConfig(spec="s3://bucket/data/x[1]*.jsonl"))
    assert remote.url == "s3://bucket/data/x[1]*.jsonl"
    assert len(list(read_documents(remote.url))) == 30


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("https://user:secret@host/a.jsonl", "credentials come from the environment"),
        ("https://host/a.jsonl?token=secret", "credentials come from the environment"),
        ("https://host/a.jsonl#secret", "credentials come from the environment"),
        ("s3://key:secret@bucket/*.jsonl", "credentials come from the environment"),
        ("s3:///data/", "names no bucket"),
        ("https:///a.jsonl", "names no host"),
        ("https://host/folder/", "HTTP cannot list a folder"),
        ("https://host/*.jsonl", "HTTP cannot list a folder"),
        ("https://host", "HTTP cannot list a folder"),
        ("s3://bucket/data/*.bin", "matches no object"),
        ("s3://bucket/data/e/nothing/", "matches no object"),
        ("s3://bucket/data/missing.jsonl", "is missing"),
        ("s3://bucket/data/_SUCCESS", "unknown extension"),
        ("HOST/bucket/data/missing.jsonl", "missing.jsonl is missing"),
        ("HOST/bucket/data/_SUCCESS", "unknown extension"),
    ],
)
def test_unusable_urls_are_one_sentence_before_reading_and_keep_secrets(server, spec, message):
    if spec.startswith("s3"):
        pytest.importorskip("boto3", reason=NEEDS_S3)
    with pytest.raises(DataError, match=message) as error:
        read_documents(spec.replace("HOST", server.url))
    text = str(error.value)
    assert "secret" not in text and "\n" not in text and text.endswith(".")


HEALED = ("cut", "stall", "reset", "busy", "short", "etag", "whole")


@pytest.mark.parametrize(("kind", "fault"), [*(("http", fault) for fault in HEALED), ("s3", "busy"), ("s3", "short")])
def test_passing_faults_heal(server, kind, fault):
    if kind == "s3":
        pytest.importorskip("boto3", reason=NEEDS_S3)
    url = f"{server.url}/bucket/data/a.jsonl" if kind == "http" else "s3://bucket/data/*.jsonl"
    server.faults.extend([fault] if fault == "whole" else [fault, fault])  # of an S3 source: of the copy too
    documents = read_documents(url)
    assert [next(documents).text for _ in range(30)] == make_texts(30, seed=1)
    assert server.seen[fault] == (1 if fault == "whole" else 2)


def test_a_listing_heals_and_a_lasting_fault_of_it_is_one_sentence(server):
    pytest.importorskip("boto3", reason=NEEDS_S3)
    server.only, server.page = re.compile("list-type"), 2
    server.faults.extend(["busy", "reset", "cut"])
    assert len(remote_files.expand(SourceConfig(spec="s3://bucket/data/"))) == 7
    assert sum(server.seen[fault] for fault in ("busy", "reset", "cut")) == 3
    for fault, message in (
        ("busy", "could not be read in 4 tries"),
        ("denied", "may not be listed"),
        ("gone", "is missing"),
    ):
        server.always = fault
        with pytest.raises(DataError, match=message):
            read_documents("s3://bucket/data/")


@pytest.mark.parametrize("fault", ["cut", "reset", "busy", "short", "etag", "denied", "gone"])
def test_lasting_faults_are_one_sentence_and_leave_no_copy(server, tmp_path, fault):
    documents = read_documents(f"{server.url}/bucket/data/a.jsonl", tmp_path)
    server.always = fault
    with pytest.raises(DataError, match=r"bucket/data/a\.jsonl") as error:
        next(documents)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    assert isinstance(error.value, Interrupted) == (fault != "gone")
    assert not list(tmp_path.glob("remote-*"))


def test_a_server_without_ranges_is_refused_before_it_sends_everything_often(server):
    server.always = "whole"
    with pytest.raises(DataError, match="whole files only"):
        list(read_documents(f"{server.url}/bucket/data/a.jsonl"))
    assert server.seen["whole"] == 2
    remote_files.PIECE = 1 << 20
    assert len(list(read_documents(f"{server.url}/bucket/data/a.jsonl"))) == 30


def test_a_declared_compression_must_be_the_one_of_the_name(server, bucket):
    """Buckets often hold .gz files with this header; a server that compresses on the way sends other bytes."""
    packed = bucket / "data" / "a.jsonl.gz"
    packed.write_bytes(gzip.compress((bucket / "data" / "a.jsonl").read_bytes()))
    server.encoding = "gzip"
    assert [d.text for d in read_documents(f"{server.url}/bucket/data/a.jsonl.gz")] == make_texts(30, seed=1)
    with pytest.raises(DataError, match=r"a\.jsonl is sent compressed \(gzip\)"):
        read_documents(f"{server.url}/bucket/data/a.jsonl")


def test_a_full_disk_is_one_sentence(server, tmp_path, monkeypatch):
    real = tempfile.NamedTemporaryFile

    def full(**options):
        file = real(**options)

        def write(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        file.write = write
        return file

    monkeypatch.setattr(remote_files.tempfile, "NamedTemporaryFile", full)
    with pytest.raises(Interrupted, match=r"the disk of .* is full: http.*a\.jsonl \(\d+ bytes\) is copied there"):
        next(read_documents(f"{server.url}/bucket/data/a.jsonl", tmp_path))
    assert not list(tmp_path.glob("remote-*"))


def test_a_file_that_was_replaced_after_the_plan_is_refused(server, bucket):
    url = f"{server.url}/bucket/data/a.jsonl"
    before, (part,) = describe_source(url), plan_parts(url, 1000)
    data = (bucket / "data" / "a.jsonl").read_bytes()
    (bucket / "data" / "a.jsonl").write_bytes(data.replace(b"Text", b"text"))  # of the same size
    assert describe_source(url) != before
    with pytest.raises(Interrupted, match="was replaced after the build had looked at it"):
        list(read_part(part))


def test_a_budgeted_source_that_changed_after_the_plan_is_refused(server, bucket):
    pytest.importorskip("boto3", reason=NEEDS_S3)
    (part,) = plan_parts(SourceConfig(spec="s3://bucket/data/*.jsonl", max_documents=35), 1000)
    part = Part.model_validate_json(part.model_dump_json())
    assert len(list(read_part(part))) == 35
    file = bucket / "data" / "e.jsonl"
    file.write_bytes(file.read_bytes().replace(b"Text", b"text"))  # of the same size
    with pytest.raises(Interrupted, match="have changed since the build looked at it"):
        read_part(part)


@pytest.mark.parametrize(
    "budget", [{"max_documents": 30}, {"max_documents": 3}, {"max_bytes": None}, {"max_bytes": 50}]
)
def test_a_budget_copies_no_file_beyond_it(server, bucket, budget):
    pytest.importorskip("boto3", reason=NEEDS_S3)
    size = sum(len(text.encode()) for text in make_texts(30, seed=1))
    budget = {key: size if value is None else value for key, value in budget.items()}
    local = SourceConfig(spec=str(bucket / "data" / "*.jsonl"), **budget)
    far = SourceConfig(spec="s3://bucket/data/*.jsonl", **budget)
    (part,) = plan_parts(far, 1000)
    assert [d.text for d in read_part(part)] == [d.text for d in read_documents(local)]
    assert {name for name in server.names if ".jsonl" in name and "?" not in name} == {"/bucket/data/a.jsonl"}


# --- builds


def dataset_files(path):
    """All files of a dataset; of the index and the record of the build only what is not the sources' names."""
    files = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    index = json.loads(files.pop(INDEX_FILE))
    files.pop(BUILD_FILE)
    return files, index["splits"]


def test_builds_are_identical_to_those_from_disk(server, bucket, tmp_path, settings):
    pytest.importorskip("boto3", reason=NEEDS_S3)
    local = BuildConfig(sources=(str(bucket / "data" / "**" / "*.*"),), output=tmp_path / "near", **settings)
    far = BuildConfig(sources=("s3://bucket/data/",), output=tmp_path / "far", part_bytes=20_000, **settings)
    build(local, progress=False).close()
    build(far, progress=False).close()
    assert dataset_files(tmp_path / "near") == dataset_files(tmp_path / "far")
    before = fingerprint_of(far)
    write_jsonl(bucket / "data" / "new.jsonl", make_texts(2, seed=9))
    assert fingerprint_of(far) != before
    with pytest.raises(DataError, match="was not built from these sources"):
        build(far, progress=False)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_goes_away_leaves_what_is_finished(server, bucket, tmp_path, settings, workers):
    names = ("a.jsonl", "e.jsonl")
    sources = tuple(f"{server.url}/bucket/data/{name}" for name in names)
    config = BuildConfig(sources=sources, output=tmp_path / "out", **settings)
    server.only = re.compile(r"/e\.jsonl")
    server.always = "denied"  # which workers meet without the pauses of the usual policy
    with pytest.raises(Interrupted, match=r"e\.jsonl cannot be read: access is denied"):
        build(config, progress=False, workers=workers)
    spool = work_directory(config.output) / "spool"
    assert spool.exists() and (workers > 1 or [path.name for path in spool.iterdir()] == ["00000"])
    server.always = None
    before = server.names.count("/bucket/data/a.jsonl")
    build(config, progress=False).close()
    if workers == 1:
        assert server.names.count("/bucket/data/a.jsonl") == before + 2  # for the fingerprint and the plan
    local = BuildConfig(
        sources=tuple(str(bucket / "data" / name) for name in ("a.jsonl", "e.jsonl")),
        output=tmp_path / "near",
        **settings,
    )
    build(local, progress=False).close()
    assert dataset_files(tmp_path / "near") == dataset_files(tmp_path / "out")


def test_decontamination_reads_urls(server, bucket, tmp_path, settings):
    held_out = make_texts(30, seed=1)[:5]
    write_jsonl(bucket / "data" / "held.jsonl", held_out)
    reports = []
    for number, place in enumerate((str(bucket), f"{server.url}/bucket")):
        clean = CleanConfig(decontaminate=DecontaminateConfig(files=(f"{place}/data/held.jsonl",)))
        sources = (str(bucket / "data" / "a.jsonl"), str(bucket / "data" / "e" / "g.txt"))
        config = BuildConfig(sources=sources, output=tmp_path / str(number), clean=clean, **settings)
        with build(config, progress=False) as dataset:
            reports.append(dataset.index.report)
        assert not list(tmp_path.rglob("remote-*"))
    assert reports[0] == reports[1]
    assert "contaminated" in json.dumps(reports[0])


def test_sources_of_moto(built, monkeypatch, bucket):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "30")  # of one page
    server, client = start_moto(monkeypatch, built)
    try:
        for number in range(45):
            client.put_object(Bucket="bucket", Key=f"many/{number:04d} é+%.txt", Body=f"text {number}".encode())
        documents = list(read_documents(SourceConfig(spec="s3://bucket/many/00?? é*.txt", max_documents=40)))
        assert [d.text for d in documents] == [f"text {n}" for n in range(40)]
        assert documents[7].id == "s3://bucket/many/0007 é+%.txt"
        assert len(plan_parts("s3://bucket/many/", 1000)) == 45
    finally:
        server.stop()
