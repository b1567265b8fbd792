"""Web pages in WARC files: main text, encodings, compressions, limits, and what is counted as rejected."""

from __future__ import annotations

import gzip
import json
import random
import sys
import time
import zlib

import pytest

from data_pipeline.build import build
from data_pipeline.config import BuildConfig
from data_pipeline.errors import DataError
from data_pipeline.sources import SourceConfig, describe_source, pages, read_all, read_documents
from data_pipeline.sources.pages import NoText, page_text
from tests.data_pipeline.conftest import make_texts

pytest.importorskip("resiliparse", reason="needs the extra [html]")
LIMIT = 1 << 20


def html_of(*paragraphs, meta="", title="A title") -> str:
    body = "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    menu = "".join(f'<li><a href="/{i}">Menu {i}</a></li>' for i in range(20))
    return (
        f"<!doctype html><html><head>{meta}<title>{title}</title><script>var hidden = 1;</script></head><body>"
        f"<nav><ul>{menu}</ul></nav><main><article><h1>Heading</h1>{body}</article></main>"
        '<div class="comments"><p>A comment</p></div><footer>All rights reserved</footer></body></html>'
    )


def response(body: bytes | str, kind="text/html; charset=utf-8", status="200 OK", **headers) -> bytes:
    body = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", *([f"Content-Type: {kind}"] if kind else [])]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def record(number: int, body: bytes, kind: str = "response", more: str = "") -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number}>\r\n"
        f"WARC-Target-URI: https://example.org/{number}\r\n"
        f"Content-Type: application/http; msgtype={kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def rule_of(data: bytes, limit: int = LIMIT) -> str:
    with pytest.raises(NoText) as caught:
        page_text(data, limit)
    return caught.value.rule


TEXT = (
    "The first paragraph of a page, with é and 中文 in it.",
    "And the second one, which is not much longer than it.",
)


def test_the_main_text_without_menus_comments_and_scripts():
    text = page_text(response(html_of(*TEXT)), LIMIT)
    assert text == page_text(response(html_of(*TEXT)), LIMIT)
    assert text.split("\n\n") == ["Heading", *TEXT]


def chunked(data: bytes) -> bytes:
    pieces = [data[i : i + 100] for i in range(0, len(data), 100)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def brotlied(data: bytes) -> bytes:
    return pytest.importorskip("brotli").compress(data)


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", deflated), ("br", brotlied), ("gzip", bytes)],
)
@pytest.mark.parametrize("in_chunks", [False, True])
def test_compressions_and_chunks_are_undone(encoding, pack, in_chunks):
    body = pack(html_of(*TEXT).encode())
    headers = {"Content_Encoding": encoding} | ({"Transfer_Encoding": "chunked"} if in_chunks else {})
    assert TEXT[0] in page_text(response(chunked(body) if in_chunks else body, **headers), LIMIT)


RUSSIAN = "Это первый абзац страницы, и в нём есть немного русского текста для проверки."
JAPANESE = "これはページの最初の段落です。日本語の文章が少し入っています。"


@pytest.mark.parametrize(
    ("text", "encoding", "header", "meta"),
    [
        (RUSSIAN, "windows-1251", "; charset=windows-1251", ""),
        (RUSSIAN, "koi8-r", "", '<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">'),
        (RUSSIAN, "windows-1251", "", ""),  # guessed
        (RUSSIAN, "utf-16", "", ""),  # told by its mark
        (RUSSIAN, "utf-8-sig", "; charset=latin1", ""),
        (RUSSIAN, "utf-8", "; charset=latin1", ""),  # valid UTF-8 is nothing else
        (JAPANESE, "shift_jis", "", "<meta charset=x-sjis>"),
        (JAPANESE, "iso2022_jp", '; charset="ISO-2022-JP"', ""),
        ("“quotes” and a dash – of Windows", "cp1252", "; charset=iso-8859-1", ""),
        ("Just some plain ASCII in a paragraph of a page.", "ascii", "; charset=nonsense", ""),
    ],
)
def test_charsets(text, encoding, header, meta):
    body = html_of(text, meta=meta).encode(encoding)
    assert text in page_text(response(body, kind=f"text/html{header}"), LIMIT)


def test_bytes_that_do_not_fit_are_rejected_and_not_replaced():
    body = html_of(RUSSIAN).encode()
    assert rule_of(response(body.replace(b"\xd1", b"\xff", 1))) == "page_charset"
    cut = body[: body.index("абзац".encode()) + 5]  # within a character, as crawlers cut long pages
    assert "первый" in page_text(response(cut), LIMIT)


def test_every_other_answer_has_its_rule():
    page = html_of(*TEXT)
    assert rule_of(response(page, status="404 Not Found")) == "http_status"
    assert rule_of(response(page, status="301 Moved", Location="/")) == "http_status"
    assert rule_of(response(page, kind="application/pdf")) == "not_html"
    assert rule_of(response(page, kind="")) == "not_html"
    assert rule_of(b"") == rule_of(b"no header at all") == "page_damaged"
    assert rule_of(response(b"\x1f\x8bgarbage", Content_Encoding="gzip")) == "page_damaged"
    assert rule_of(response(b"garbage", Content_Encoding="br")) == "page_damaged"
    assert rule_of(response(b"garbage", Content_Encoding="rot13")) == "page_damaged"
    assert rule_of(response("")) == rule_of(response("<html><body><script>x</script></body></html>")) == "no_main_text"
    assert rule_of(response("<div>" * 50_000 + "x")) == "page_too_deep"
    assert TEXT[0] in page_text(response(html_of(*(TEXT * 3000))), LIMIT)  # long, not deep


@pytest.mark.parametrize("unit", ["<div></x>", "<span><div></span></div>", "<span><p></span></p>", "<p><b class={}>"])
def test_depth_is_what_the_parser_makes_of_the_tags(unit):
    """Extraction would take a minute or more."""
    assert rule_of(response("".join(unit.format(i) for i in range(12_000)) + "x")) == "page_too_deep"


@pytest.mark.parametrize(
    "unit",
    [
        "<p>{}",
        "<p>{}</p><ul><li>x<li>y</ul>",
        "{}<br>",
        "<div><p>{}</div>",
        "{}<div></x></div>",
        "<a href=/{0}>{0}<p></a>",
    ],
)
def test_tags_that_are_left_out_do_not_make_a_page_deep(unit):
    assert "word 3999" in page_text(response("<main>" + "".join(unit.format(f"word {i}") for i in range(4000))), LIMIT)


def test_declarations_are_searched_in_linear_time():
    spaces = " " * 200_000
    for declaration in (f"charset={spaces};", f"{spaces}charset{spaces}=x", "charset=" * 20_000):
        began = time.process_time()
        assert TEXT[0] in page_text(response(html_of(*TEXT), kind=f"text/html; {declaration}"), LIMIT)
        page = html_of(*TEXT, meta="<meta " * 60 + declaration[:2000] + ";")
        page_text(response(page, kind="text/html"), LIMIT)
        assert time.process_time() - began < 3  # quadratic: 8 s and more


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", deflated), ("br", brotlied), ("", chunked)],
)
def test_a_body_that_is_cut_is_damage(encoding, pack):
    headers = {"Content_Encoding": encoding} if encoding else {"Transfer_Encoding": "chunked"}
    body = pack(html_of(*(TEXT * 20)).encode())
    assert TEXT[1] in page_text(response(body, **headers), LIMIT)
    for end in (len(body) // 2, len(body) - 10):
        assert rule_of(response(body[:end], **headers)) == "page_damaged", end


def test_all_members_of_a_gzip_body_are_read():
    first, second = (gzip.compress(half.encode()) for half in html_of(*TEXT).split("</p>", 1))
    assert TEXT[1] in page_text(response(first + second, Content_Encoding="gzip"), LIMIT)
    assert rule_of(response(first + second[:-9], Content_Encoding="gzip")) == "page_damaged"


def test_chunks_must_have_their_size_unless_the_crawler_joined_them():
    page = html_of(*TEXT).encode()
    for bad in (b"zz\r\n", b"-64\r\n", b"64\n", b"65\r\n"):
        assert rule_of(response(chunked(page).replace(b"64\r\n", bad), Transfer_Encoding="chunked")) == "page_damaged"
    for end in (b"0\r\nExpires: now\r\n\r\n", b"0;last\r\n\r\n"):
        found = page_text(response(chunked(page)[:-5] + end, Transfer_Encoding="chunked"), LIMIT)
        assert TEXT[1] in found
    assert TEXT[1] in page_text(response(page, Transfer_Encoding="chunked"), LIMIT)
    both = {"Transfer_Encoding": "chunked", "Content_Encoding": "gzip"}
    assert TEXT[1] in page_text(response(gzip.compress(page), **both), LIMIT)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("br", brotlied)])
def test_bombs_are_rejected_in_bounded_memory(encoding, pack):
    tracemalloc = __import__("tracemalloc")
    data = response(pack(b" " * 50_000_000), Content_Encoding=encoding)
    tracemalloc.start()
    assert rule_of(data) == "page_too_large"
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert rule_of(response(html_of("word " * 1000)), limit=1000) == "page_too_large"


def test_garbage_never_raises_anything_else():
    rng = random.Random(1)
    page = bytearray(response(gzip.compress(html_of(*TEXT).encode()), Content_Encoding="gzip"))
    plain = bytearray(response(chunked(html_of(*TEXT).encode()), Transfer_Encoding="chunked"))
    for number in range(600):
        data = bytearray((page, plain)[number % 2])
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            assert page_text(bytes(data[: rng.randint(0, len(data))]), LIMIT)
        except NoText as reason:
            assert reason.rule in ("http_status", "not_html", "page_damaged", "page_charset", "no_main_text")


# --- in files and builds


def crawl(path, texts):
    """A WARC file of pages, with every kind of record that gives no text between them."""
    records = [record(0, b"software: test\r\n", "warcinfo")]
    for number, text in enumerate(texts, start=1):
        records.append(record(number, b"GET / HTTP/1.1\r\n\r\n", "request"))
        records.append(record(number, response(html_of(*text.split("\n\n")))))
    records.insert(3, record(9001, response("", status="404 Not Found")))
    records.insert(5, record(9002, response(b"%PDF", kind="application/pdf")))
    records.append(record(9003, response("<p>")))
    path.write_bytes(b"".join(gzip.compress(one) for one in records))
    return path


def test_documents_of_a_crawl_and_what_is_passed_over(tmp_path):
    path = crawl(tmp_path / "a.warc.gz", ["One text of a page.", "Another text of a page."])
    found = list(read_all(str(path)))
    assert [(d.id, d.rejected) for d in found] == [
        ("<urn:uuid:1>", None),
        ("https://example.org/9001", "http_status"),
        ("https://example.org/9002", "not_html"),
        ("<urn:uuid:2>", None),
        ("https://example.org/9003", "no_main_text"),
    ]
    assert [d.text for d in read_documents(str(path))] == [
        "Heading\n\nOne text of a page.",
        "Heading\n\nAnother text of a page.",
    ]
    assert len(list(read_documents(SourceConfig(spec=str(path), max_documents=2)))) == 2
    (tmp_path / "b.warc").write_bytes(record(1, response(html_of("word " * 1000))))
    (only,) = read_all(SourceConfig(spec=str(tmp_path / "b.warc"), max_document_bytes=1000))
    assert only.rejected == "page_too_large"


def test_pages_that_the_crawler_cut_are_counted(tmp_path):
    cut = "WARC-Truncated: length\r\n"
    bodies = [response(html_of(*TEXT)), response(b"%PDF", kind="application/pdf")]
    (tmp_path / "a.warc").write_bytes(b"".join(record(n, body, more=cut) for n, body in enumerate(bodies)))
    assert [d.rejected for d in read_all(str(tmp_path / "a.warc"))] == ["page_truncated", "not_html"]


def test_a_cut_page_record_is_damage(tmp_path):
    path = tmp_path / "a.warc"
    path.write_bytes(record(1, response(html_of(*TEXT)))[:-50])
    with pytest.raises(DataError, match="cut short"):
        list(read_all(str(path)))


def test_without_the_library_pages_are_one_sentence_and_wet_files_are_read(tmp_path, monkeypatch):
    for name in ("resiliparse", "resiliparse.extract", "resiliparse.extract.html2text"):
        monkeypatch.setitem(sys.modules, name, None)
    path = crawl(tmp_path / "a.warc.gz", ["One text."])
    with pytest.raises(DataError, match=r"a\.warc\.gz, record 3 is a web page.*pip install 'pha-pretrain\[html\]'"):
        list(read_documents(str(path)))


def test_the_library_counts_for_whether_a_dataset_is_up_to_date(tmp_path, monkeypatch):
    raw, wet = crawl(tmp_path / "a.warc.gz", ["One text."]), crawl(tmp_path / "a.warc.wet.gz", ["One text."])
    before = [describe_source(str(path)) for path in (raw, wet)]
    assert before[0][-1] == ["resiliparse", pages.version()]
    monkeypatch.setattr(pages, "version", lambda: "another")
    assert describe_source(str(raw)) != before[0]
    assert describe_source(str(wet)) == before[1]


def test_a_build_counts_rejected_records_by_rule(tmp_path, settings):
    pages_path = crawl(tmp_path / "pages.warc.gz", [t.replace("<", "") for t in make_texts(80, seed=3)])
    wet = tmp_path / "texts.warc.wet"
    texts = [text.encode() for text in make_texts(80, seed=4)]
    texts[5] += b" \xff\xfe broken"
    wet.write_bytes(b"".join(record(number, text, "conversion") for number, text in enumerate(texts)))
    outputs = []
    for part_bytes in (1000, 10**9):
        config = BuildConfig(
            sources=(str(pages_path), str(wet)), output=tmp_path / str(part_bytes), part_bytes=part_bytes, **settings
        )
        with build(config, progress=False) as dataset:
            outputs.append(dataset.index.model_dump_json())
            reports = {name.rpartition("/")[2]: report for name, report in dataset.index.report["sources"].items()}
    assert outputs[0] == outputs[1]
    first, second = reports["pages.warc.gz"], reports["texts.warc.wet"]
    assert {name: count for name, count in first["rejected"].items() if count} == {
        "http_status": 1,
        "not_html": 1,
        "no_main_text": 1,
    }
    assert first["samples"]["http_status"] == ["https://example.org/9001"]
    assert (first["documents_read"], first["documents_kept"]) == (83, 80)
    assert (second["rejected"]["not_utf8"], second["documents_kept"]) == (1, 79)
    assert second["bytes_rejected"]["not_utf8"] > len(texts[5]) and "\ufffd" not in json.dumps(second["rejected"])
