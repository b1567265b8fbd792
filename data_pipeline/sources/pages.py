"""The main text of web pages (``response`` records of WARC files), by resiliparse (the extra ``[html]``).

Resiliparse is what DCLM (Li et al. 2024) extracted Common Crawl with. It is ten times as fast as trafilatura and brings
two packages instead of ten. It goes by rules of thumb about tags and class names and takes short lists for menus;
trafilatura does not (docs/notebook.md). What a page cannot give is told by the name of a rule, not by an exception that
stops a build: a crawl of any size holds pages of every kind of brokenness.
"""

from __future__ import annotations

import codecs
import gzip
import importlib.metadata
import io
import re
import zlib
from collections import Counter
from typing import Any

from data_pipeline.errors import DataError

LIBRARY = "resiliparse"
#: Elements may be nested so deep, as in Chrome: extraction costs elements × depth, and real pages stay below 200.
DEEPEST = 512
#: So many elements may come from a parser that opens unclosed bold or font again in every paragraph: without a bound a
#: page of 1 MB makes a billion.
REOPENED = 1_000_000
#: Matches an element that is deeper.
_DEEP = ">".join(["*"] * (DEEPEST + 1))
_HTML = ("text/html", "application/xhtml+xml")
#: Bounded, as is what they search: with free repeats, a long header of spaces takes quadratic time.
_CHARSET = re.compile(r"charset\s{0,8}=\s{0,8}(?:[\"']\s{0,8})?([\w.:-]+)", re.IGNORECASE)
_META = re.compile(rb"<meta\s[^>]{0,256}?charset\s{0,8}=\s{0,8}(?:[\"']\s{0,8})?([\w.:-]+)", re.IGNORECASE)
_TYPE = 1024
#: Browsers look for the declaration in so many bytes (WHATWG: 1,024); old pages have it after a long title.
_HEAD = 4096
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)")
#: Elements that a parser opens again in the next block if they were not closed (HTML: "formatting").
_FORMATTING = frozenset(
    ("a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u"),
)
#: How a chunk begins: its size, and what few servers add to it.
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,16})[ \t]{0,16}(?:;[^\r\n]{0,256})?\r\n")


class NoText(Exception):
    """A page that gives no text; `rule` says why, in the words of the cleaning report."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


def version() -> str | None:
    """Version of the library, which decides what the text of a page is; None if it is not installed."""
    try:
        return importlib.metadata.version(LIBRARY)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_library(place: str) -> None:
    """Raises DataError, which begins with `place`, if the library is not installed."""
    try:
        import resiliparse.extract.html2text  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"{place} is a web page, and its text needs resiliparse: install the extra with "
            "pip install 'pha-pretrain[html]', or use the crawl's WET files."
        ) from error


def page_text(response: bytes, limit: int, truncated: bool = False) -> str:
    """The main text of an HTTP response (status line, header and body) that is an HTML page.

    Comments, menus, forms and what is hidden are left out; paragraphs stay apart.

    Args:
        response: the bytes as a server sent them; chunks and the compressions gzip, deflate and br are undone.
        limit: largest size of the page, uncompressed, in bytes.
        truncated: whether the crawler says that it did not keep all of it.

    Raises:
        NoText: ``http_status`` (not 200), ``not_html``, ``page_truncated``, ``page_damaged`` (header, chunks or
            compression, also where they end too early), ``page_too_large``, ``page_charset`` (its bytes are not in the
            encoding that it declares), ``page_too_deep``, or ``no_main_text``.
    """
    from warcio.statusandheaders import StatusAndHeadersParser, StatusAndHeadersParserException

    stream = io.BytesIO(response)
    try:
        head = StatusAndHeadersParser(["HTTP/"], verify=False).parse(stream)
    except (StatusAndHeadersParserException, EOFError, ValueError) as error:
        raise NoText("page_damaged") from error
    if not head.protocol.upper().startswith("HTTP/"):
        raise NoText("page_damaged")
    if head.get_statuscode() != "200":
        raise NoText("http_status")
    kind = head.get_header("content-type") or ""
    if kind.partition(";")[0].strip().lower() not in _HTML:
        raise NoText("not_html")
    if truncated:
        raise NoText("page_truncated")
    body = stream.read()
    try:
        if (head.get_header("transfer-encoding") or "").strip().lower() == "chunked" and not _undone(body):
            body = _joined(body)
        body = _unpacked(body, (head.get_header("content-encoding") or "").strip().lower(), limit)
    except (zlib.error, gzip.BadGzipFile, EOFError, ValueError, LookupError) as error:
        raise NoText("page_damaged") from error
    return _main_text(decoded(body, kind))


def _undone(body: bytes) -> bool:
    """Whether this is already the page: some crawlers undo chunks or compression and leave the header as it was."""
    return body[:_HEAD].lstrip().removeprefix(codecs.BOM_UTF8)[:1] == b"<"


def _joined(body: bytes) -> bytes:
    """The body without its chunks. Raises ValueError where one has no size or is cut short."""
    at, pieces = 0, list[bytes]()
    while True:
        head = _CHUNK.match(body, at)
        if head is None:
            # gzip's first bytes are no chunk: the crawler has joined them
            if at == 0 and body.startswith(b"\x1f\x8b"):
                return body
            raise ValueError("a chunk without a size")
        size, start = int(head[1], 16), head.end()
        if size == 0:
            return b"".join(pieces)
        at = start + size + 2
        if body[start + size : at] != b"\r\n":
            raise ValueError("a chunk is cut short")
        pieces.append(body[start : start + size])


def _unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its compression, of which little more than `limit` bytes are unpacked whatever it holds.

    Raises NoText, and what :func:`_expand` does.
    """
    plain = encoding in ("", "identity") or not body or _undone(body)
    result = body if plain else _expand(body, encoding, limit + 1)
    if len(result) > limit:
        raise NoText("page_too_large")
    return result


def _expand(body: bytes, encoding: str, limit: int) -> bytes:
    """The first `limit` bytes, or a few more.

    Raises zlib.error, BadGzipFile, EOFError, ValueError or LookupError for what is damaged, cut short or unknown.
    """
    if encoding in ("gzip", "x-gzip"):  # may have several members
        return gzip.GzipFile(fileobj=io.BytesIO(body)).read(limit)
    if encoding == "deflate":
        try:
            return _inflated(body, zlib.MAX_WBITS, limit)
        except zlib.error:  # many servers leave the wrapping out
            return _inflated(body, -zlib.MAX_WBITS, limit)
    if encoding != "br":
        raise LookupError(encoding)
    import brotli

    unpacker, result = brotli.Decompressor(), b""
    try:
        result = unpacker.process(body, output_buffer_limit=limit)
        while len(result) < limit and not unpacker.is_finished() and (more := unpacker.process(b"", limit)):
            result += more
    except brotli.error as error:
        raise ValueError("brotli") from error
    if len(result) < limit and not unpacker.is_finished():
        raise EOFError("brotli")
    return result


def _inflated(body: bytes, bits: int, limit: int) -> bytes:
    unpacker = zlib.decompressobj(bits)
    result = unpacker.decompress(body, limit)
    if len(result) < limit and not unpacker.eof:
        raise EOFError("deflate")
    return result


def decoded(page: bytes, content_type: str) -> str:
    """The characters of a page.

    Its byte order mark decides; else it is UTF-8 if it is valid UTF-8, whatever it declares (text in other encodings
    never is); else the header's declaration and then the page's own hold, or a guess where there is neither. Nothing
    is replaced: bytes that do not fit raise NoText, except for a last character that is cut off with the page.
    """
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    for mark, name in _BOMS:
        if page.startswith(mark):
            return _strictly(page, [name])
    declared = [match[1] for match in [_CHARSET.search(content_type[:_TYPE])] if match]
    declared += [match[1].decode("ascii", "replace") for match in [_META.search(page[:_HEAD])] if match]
    # As in a browser, latin-1 means windows-1252.
    names = [name for name in (map_encoding_to_html5(label, False) for label in declared) if name]
    if not declared:
        names = [name for name in [detect_encoding(page)] if name]
    # ISO-2022 is written in ASCII with escapes, so that it would pass as UTF-8.
    return _strictly(page, [*(name for name in names if name.startswith("iso2022")), "utf-8", *names])


def _strictly(page: bytes, names: list[str]) -> str:
    for name in names:
        try:
            return codecs.getincrementaldecoder(name)("strict").decode(page, final=False)
        except (UnicodeError, LookupError):
            continue
    raise NoText("page_charset")


def _main_text(html: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    many = html.count("<") > DEEPEST
    if many and _reopens(html):
        raise NoText("page_too_deep")
    try:
        tree = HTMLTree.parse(html)
        if many and _too_deep(tree):
            raise NoText("page_too_deep")
        text = extract_plain_text(tree, preserve_formatting=True, main_content=True, alt_texts=False, comments=False)
    except NoText:
        raise
    except BaseException as error:
        # A panic in the library's Rust arrives as a BaseException of its own.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise NoText("no_main_text") from error
        raise
    if not text.strip():
        raise NoText("no_main_text")
    return text


def _too_deep(tree: Any) -> bool:
    """Whether elements are nested deeper than :data:`DEEPEST`.

    The parsed tree says so, which takes linear time to make: which end tags count depends on all that is open.
    """
    return tree.document.query_selector(_DEEP) is not None


def _reopens(html: str) -> bool:
    """Whether unclosed formatting would be opened again more than :data:`REOPENED` times."""
    unclosed: Counter[str] = Counter()
    waiting = made = 0
    for end, found in _TAG.findall(html):
        name = found.lower()
        if name not in _FORMATTING:
            made += waiting
            if made > REOPENED:
                return True
        elif end:
            waiting -= unclosed[name] > 0
            unclosed[name] = max(0, unclosed[name] - 1)
        elif name != "a" or not unclosed[name]:  # a link ends the one before
            unclosed[name] += 1
            waiting += 1
    return False
