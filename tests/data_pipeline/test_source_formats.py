"""Small archives of each layout, whole and damaged."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_pipeline.errors import DataError
from data_pipeline.sources import SourceConfig, describe_source, plan_parts, read_documents, read_part


def make_tar(members, **settings) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **settings) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def texts(path, **settings) -> list[str]:
    return [d.text for d in read_documents(SourceConfig(spec=str(path), **settings))]


SAMPLES = [(f"doc{i:03d}.txt", f"text number {i} é ".encode() * (i + 1)) for i in range(30)]
EXPECTED = [data.decode() for _, data in SAMPLES]


# --- tar ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("tar", bytes), ("tar.gz", gzip.compress), ("tar.xz", lzma.compress), ("tar.zst", zstandard.compress)],
)
def test_tar_of_text(tmp_path, suffix, pack):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(pack(make_tar(SAMPLES)))
    assert texts(path) == EXPECTED
    assert next(read_documents(str(path))).id == f"{path}#doc000"


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tar_of_json_and_long_names(tmp_path, kind):
    long = "d" * 150 + "/é" + "x" * 90
    members = [
        ("a.json", b'{"body": "first", "key": 5}'),
        (f"{long}.txt", b"second"),
        ("c.jpg", b"\xff\xd8"),
        ("d.json", b'{"url": "about d"}'),
        ("d.txt", b"third"),
    ]
    path = tmp_path / "a.tar"
    path.write_bytes(make_tar(members, format=kind))
    documents = list(read_documents(SourceConfig(spec=str(path), text_field="body", id_field="key")))
    assert [(d.id, d.text) for d in documents] == [
        ("5", "first"),
        (f"{path}#{long}", "second"),
        (f"{path}#d", "third"),
    ]


def test_damages_on_which_the_library_is_silent_are_errors(tmp_path):
    whole = make_tar(SAMPLES[:6])  # members of one or two blocks
    path = tmp_path / "a.tar"
    header = whole.index(b"doc003.txt")
    damages = {
        "cut at a member boundary": whole[:header],
        "cut inside a header": whole[: header + 100],
        "cut inside data": whole[: header + 520],
        "garbage over a header": whole[:header] + os.urandom(512) + whole[header + 512 :],
        "one end block": whole.rstrip(b"\0")[: len(whole)].ljust(-(-len(whole.rstrip(b"\0")) // 512) * 512, b"\0")
        + bytes(512),
        "zeros over a header": whole[:header] + bytes(512) + whole[header + 512 :],
        "empty file": b"",
        "garbage": b"hello " * 500,
    }
    for name, data in damages.items():
        path.write_bytes(data)
        got = []
        with pytest.raises(DataError, match=r"a\.tar") as caught:
            for document in read_documents(str(path)):
                got.append(document.text)
        assert EXPECTED[: len(got)] == got, name
        assert len(caught.value.args) == 1 and "<" not in str(caught.value), name


@pytest.mark.parametrize("position", range(0, 512, 37))
def test_any_changed_header_byte_is_found(tmp_path, position):
    whole = bytearray(make_tar(SAMPLES))
    whole[whole.index(b"doc003.txt") + position] ^= 0x15
    path = tmp_path / "a.tar"
    path.write_bytes(whole)
    with pytest.raises(DataError):
        texts(path)


def test_hostile_members_are_refused(tmp_path):
    path = tmp_path / "a.tar"
    for name in ("../up.txt", "/root.txt", "a/../../b.txt", "a\\b.txt"):
        path.write_bytes(make_tar([("ok.txt", b"fine"), (name, b"x")]))
        with pytest.raises(DataError, match="leads outside"):
            texts(path)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("a.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="is a link"):
        texts(path)
    path.write_bytes(make_tar([("a.txt", b"1"), ("a.txt", b"2")]))
    with pytest.raises(DataError, match="duplicate"):
        texts(path)
    path.write_bytes(make_tar([("a.pkl", b"cos\nsystem\n(S'false'\ntR.")]))
    with pytest.raises(DataError, match=r"no \.txt or \.json member"):
        texts(path)


def test_size_limits(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(make_tar([("a.txt", b"x" * 2000)]))
    with pytest.raises(DataError, match="max_document_bytes is 1000"):
        texts(path, max_document_bytes=1000)
    line = tmp_path / "a.jsonl"
    line.write_text(json.dumps({"text": "x" * 2000}), encoding="utf-8")
    with pytest.raises(DataError, match="line of more than 1000 bytes"):
        texts(line, max_document_bytes=1000)


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("gz", gzip.compress), ("zst", zstandard.compress), ("xz", lambda d: lzma.compress(d, preset=0))],
)
def test_decompression_bombs_are_refused(tmp_path, suffix, pack):
    bomb = pack((b"a" * 99 + b"\n") * 700_000)  # 70 MB
    path = tmp_path / f"bomb.txt.{suffix}"
    path.write_bytes(bomb)
    with pytest.raises(DataError, match="decompression bomb"):
        texts(path)
    assert sum(len(text) for text in texts(path, max_ratio=1e6)) == 70_000_000


# --- compressed lines, xz -------------------------------------------------------------------------------


def test_xz_streams_and_truncation(tmp_path):
    data = b"".join(json.dumps({"text": os.urandom(20).hex()}).encode() + b"\n" for _ in range(3000))
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(lzma.compress(data[:5000]) + bytes(8) + lzma.compress(data[5000:]))
    assert texts(path) == [json.loads(line)["text"] for line in data.splitlines()]
    path.write_bytes(lzma.compress(data)[:-2000])
    with pytest.raises(DataError, match="damaged or cut short"):
        texts(path)


# --- OpenWebText ----------------------------------------------------------------------------------------


def subset(number: int) -> bytes:
    members = [(f"{number:07d}-{i}.txt", f"page {number} {i}".encode()) for i in range(4)]
    return lzma.compress(make_tar(members))


def test_openwebtext_layout(tmp_path):
    path = tmp_path / "openwebtext.tar.xz"
    names = [f"openwebtext/urlsf_subset00-{n}_data.xz" for n in range(3)]
    path.write_bytes(lzma.compress(make_tar([(name, subset(n)) for n, name in enumerate(names)])))
    documents = list(read_documents(str(path)))
    assert [d.text for d in documents] == [f"page {n} {i}" for n in range(3) for i in range(4)]
    assert documents[0].id == "urlsf_subset00-0_data/0000000-0.txt"
    for n, name in enumerate(names):  # unpacked once: the same documents, in parts
        (tmp_path / name.rpartition("/")[2]).write_bytes(subset(n))
    source = str(tmp_path / "urlsf_subset*.xz")
    parts = plan_parts(source, 1000)
    assert len(parts) == 3
    assert [(d.id, d.text) for part in parts for d in read_part(part)] == [(d.id, d.text) for d in documents]


def test_damaged_openwebtext_is_named(tmp_path):
    path = tmp_path / "openwebtext.tar.xz"
    path.write_bytes(lzma.compress(make_tar([("a.xz", subset(0)), ("b.xz", subset(1)[:-40])])))
    with pytest.raises(DataError, match=r"openwebtext\.tar\.xz » b\.xz is damaged or cut short"):
        texts(path)
    inner = lzma.compress(make_tar([("x.txt", b"1"), ("y.txt", b"2")])[:1024])
    path.write_bytes(lzma.compress(make_tar([("b.xz", inner)])))
    with pytest.raises(DataError, match=r"b\.xz is cut short"):
        texts(path)
    path.write_bytes(lzma.compress(make_tar([("b.xz", subset(0))])))
    with pytest.raises(DataError, match=r"b\.xz » 0000000-0\.txt has 8 bytes, and max_document_bytes is 7"):
        texts(path, max_document_bytes=7)
    path.write_bytes(lzma.compress(make_tar([("readme", b"1")])))
    with pytest.raises(DataError, match="it is not OpenWebText"):
        texts(path)


# --- WikiText -------------------------------------------------------------------------------------------


def test_wikitext_is_split_at_titles_only(tmp_path):
    articles = [
        f" = Title {i} = \n \n Some words . \n = {i} @.@ 5 = \n \n = = History = = \n \n More of {i} . \n \n"
        for i in range(5)
    ]
    path = tmp_path / "wiki.train.raw"
    path.write_text(" \n" + "".join(articles), encoding="utf-8")
    documents = list(read_documents(str(path)))
    assert [d.text.strip() for d in documents] == [article.strip() for article in articles]
    assert documents[1].id == f"{path}#{2 + len(articles[0])}"


# --- Parquet --------------------------------------------------------------------------------------------


def test_parquet_rows_and_row_groups(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"body": [f"row {i}" for i in range(1000)], "key": list(range(1000)), "n": [1] * 1000})
    pq.write_table(table, path, row_group_size=90)
    source = SourceConfig(spec=str(path), text_field="body")
    documents = list(read_documents(source))
    assert [(d.id, d.text) for d in documents] == [(f"{path}@{i}", f"row {i}") for i in range(1000)]
    parts = plan_parts(source, 2000)
    assert len(parts) > 3
    assert [d for part in parts for d in read_part(part)] == documents
    assert next(read_documents(SourceConfig(spec=str(path), text_field="body", id_field="key"))).id == "0"
    with pytest.raises(DataError, match=r"no text column 'text' .*body, key, n"):
        texts(path)


def test_bad_parquet_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", None, "c"]}), path)
    with pytest.raises(DataError, match=r"a\.parquet, row 1"):
        texts(path)
    pq.write_table(pa.table({"text": ["a" * (1 << 22)] * 40}), path, compression="zstd", use_dictionary=False)
    with pytest.raises(DataError, match="decompression bomb"):
        texts(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="damaged or no Parquet"):
        texts(path)


# --- WARC -----------------------------------------------------------------------------------------------


def record(number: int, kind: str = "conversion") -> bytes:
    body = f"Seite {number} é ".encode() * 20**number
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number}>\r\n"
        f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


WET = [record(0, "warcinfo"), *(record(n) for n in range(1, 4))]


def test_wet_records(tmp_path):
    plain, packed = tmp_path / "a.warc.wet", tmp_path / "b.warc.wet.gz"
    plain.write_bytes(b"".join(WET))
    packed.write_bytes(b"".join(gzip.compress(r) for r in WET))
    expected = [(f"<urn:uuid:{n}>", f"Seite {n} é " * 20**n) for n in range(1, 4)]
    for path in (plain, packed):
        assert [(d.id, d.text) for d in read_documents(str(path))] == expected


def test_damaged_warc_is_an_error(tmp_path):
    whole, packed = b"".join(WET), b"".join(gzip.compress(r) for r in WET)
    last = len(WET[-1])
    plain = {
        "in the body": whole[:-100],
        "in a header": whole[: -last + 50],
        "in the last line end": whole[:-2],
        "magic": whole.replace(b"WARC/1.0\r\nWARC-Type: conversion", b"WXRC/1.0\r\nWARC-Type: conversion"),
        "garbage": b"no archive at all\n" * 100,
        "empty": b"",
    }
    for name, data in plain.items():
        path = tmp_path / "a.warc"
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"a\.warc"):
            pytest.fail(f"{name}: {texts(path)}")
    path = tmp_path / "a.warc.gz"
    for cut in (10, 60, 200):
        path.write_bytes(packed[:-cut])
        with pytest.raises(DataError, match="damaged or cut short"):
            texts(path)


# --- Hugging Face ---------------------------------------------------------------------------------------


def test_hugging_face_data_set_in_a_local_directory(tmp_path):
    pytest.importorskip("datasets", reason="the extra [hf] is not installed")
    for shard in range(3):
        rows = [{"text": f"shard {shard} row {i}", "id": f"{shard}-{i}"} for i in range(5)]
        (tmp_path / f"train-{shard}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = f"hf:{tmp_path}"
    documents = list(read_documents(source))
    assert [(d.id, d.text) for d in documents] == [
        (f"{s}-{i}", f"shard {s} row {i}") for s in range(3) for i in range(5)
    ]
    parts = plan_parts(source, 1)
    assert len(parts) == 3
    assert [d for part in parts for d in read_part(part)] == documents
    before = describe_source(source)
    assert before == describe_source(source)
    with pytest.raises(DataError, match="cannot be loaded"):
        list(read_documents(f"hf:{tmp_path}:nothing"))
    with pytest.raises(DataError, match='string field "body"'):
        list(read_documents(SourceConfig(spec=source, text_field="body")))
