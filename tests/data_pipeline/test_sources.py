from __future__ import annotations

import gzip
import json

import pytest
import zstandard

from data_pipeline.errors import DataError
from data_pipeline.sources import describe_source, read_documents

LINES = [{"text": "first text", "id": 7}, {"text": "second"}]
JSONL = "\n".join(json.dumps(line) for line in LINES).encode() + b"\n\n"


def test_jsonl_ids_and_texts(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(JSONL)
    documents = list(read_documents(str(path)))
    assert [(d.id, d.text) for d in documents] == [("7", "first text"), (f"{path}@32", "second")]
    assert {d.source for d in documents} == {str(path)}


def test_compressed_files_read_the_same(tmp_path):
    frames = zstandard.compress(JSONL[:20]) + zstandard.compress(JSONL[20:])  # several frames, as pzstd writes
    (tmp_path / "b.jsonl.zst").write_bytes(frames)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(JSONL))
    for name in ("b.jsonl.zst", "b.jsonl.gz"):
        assert [d.text for d in read_documents(str(tmp_path / name))] == ["first text", "second"]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_truncated_compressed_file_is_an_error(tmp_path, suffix):
    data = b"".join(json.dumps({"text": str(i) * 50}).encode() + b"\n" for i in range(5000))
    packed = gzip.compress(data) if suffix == "gz" else zstandard.compress(data)
    path = tmp_path / f"t.jsonl.{suffix}"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=rf"t\.jsonl\.{suffix} is damaged or cut short"):
        list(read_documents(str(path)))


@pytest.mark.parametrize("line", [b'{"text": "cut', b"[1]", b'{"body": "x"}', b'{"text": 3}', b'{"text": "\xff"}'])
def test_malformed_line_is_named(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b"\n")
    documents = read_documents(str(path))
    assert next(documents).text == "good"
    with pytest.raises(DataError, match=r"bad\.jsonl:2 .*fix or delete that line"):
        next(documents)


def test_text_file_is_one_document_and_a_glob_is_sorted(tmp_path):
    for name in ("b.txt", "a.md", "c.txt"):
        (tmp_path / name).write_text(f"text of {name}\n\nmore", encoding="utf-8")
    assert [d.text.split()[2] for d in read_documents(str(tmp_path / "*.*"))] == ["a.md", "b.txt", "c.txt"]
    assert [d.id for d in read_documents(str(tmp_path / "a.md"))] == [str(tmp_path / "a.md")]


def test_large_text_file_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path):
    paragraphs = [f"paragraph {i} é " + "word " * (i % 400) for i in range(3000)]
    text = "\n\n".join(paragraphs)
    path = tmp_path / "book.txt"
    path.write_text(text, encoding="utf-8")
    documents = list(read_documents(str(path)))
    assert "".join(d.text for d in documents) == text
    assert len(documents) > 50
    assert max(len(d.text) for d in documents) < 20 * 1024
    assert all(d.text.startswith("paragraph") for d in documents)
    sizes = [len(d.text.encode()) for d in documents]
    assert [d.id for d in documents] == [f"{path}#{sum(sizes[:i])}" for i in range(len(documents))]


def test_large_text_without_blank_lines_is_cut_too(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("word " * 300_000, encoding="utf-8")
    pieces = [d.text for d in read_documents(str(path))]
    assert "".join(pieces) == "word " * 300_000
    assert len(pieces) > 4
    path.write_text("x" * 1_000_000, encoding="utf-8")
    assert "".join(d.text for d in read_documents(str(path))) == "x" * 1_000_000


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("missing.txt", "matches no file"),
        ("*.nothing", "matches no file"),
        ("data.bin", "unknown extension"),
        ("data.gz", "unknown extension"),
        (".", "is a directory"),
        ("ftp://example.org/a.txt", "is a URL"),
        ("pipe:cat a.txt", "is a URL"),
    ],
)
def test_unusable_sources_are_told_before_reading(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.bin").write_bytes(b"x")
    (tmp_path / "data.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        read_documents(spec)


def test_description_changes_with_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one", encoding="utf-8")
    before = describe_source(str(path))
    assert describe_source(str(path)) == before
    path.write_text("other", encoding="utf-8")
    assert describe_source(str(path)) != before


@pytest.mark.parametrize("before", [b"", b"A line of plain text.\n\n" * 20_000])
def test_text_in_another_encoding_is_refused_with_its_place(tmp_path, before):
    """Whole files and files that are cut into pieces; replacement characters would change the corpus silently."""
    path = tmp_path / "latin.txt"
    path.write_bytes(before + "na\u00efve caf\u00e9".encode("latin-1"))
    with pytest.raises(DataError, match=rf"latin\.txt is not UTF-8 at byte {len(before) + 2}: convert it"):
        list(read_documents(str(path)))


def test_windows_newlines_give_the_same_pieces(tmp_path):
    text = "\n\n".join(f"Paragraph {i} of a long file, with some words in it." for i in range(12_000))
    counts = []
    for name, newline in (("unix.txt", "\n"), ("windows.txt", "\r\n")):
        (tmp_path / name).write_bytes(text.replace("\n", newline).encode())
        pieces = list(read_documents(str(tmp_path / name)))
        assert all(len(piece.text) < 64_000 for piece in pieces)
        counts.append(len(pieces))
    assert counts[0] > 10
    assert abs(counts[1] - counts[0]) <= 0.1 * counts[0]
