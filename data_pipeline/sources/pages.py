"""The main text of web pages (``response`` records of WARC files), by resiliparse (the extra ``[html]``).

Resiliparse is what DCLM (Li et al. 2024) extracted Common Crawl with. It is ten times as fast as trafilatura and brings
two packages instead of ten. It goes by rules of thumb about tags and class names and takes short lists for menus;
trafilatura does not (docs/notebook.md). What a page cannot give is told by the name of a rule, not by an exception that
stops a build: a crawl of any size holds pages of every kind of brokenness.
"""

from __future__ import annotations

import codecs
import importlib.metadata
import io
import re
import zlib
from collections.abc import Iterator

from data_pipeline.errors import DataError

LIBRARY = "resiliparse"
#: Elements may be nested so deep: extraction is quadratic in it (0.2 s at this depth), and real pages stay below 200.
DEEPEST = 3000
_HTML = ("text/html", "application/xhtml+xml")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_META = re.compile(rb"<meta\s[^>]*?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
#: Browsers look for the declaration in so many bytes (WHATWG: 1,024); old pages have it after a long title.
_HEAD = 4096
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)")
#: Elements that have no end, or whose end is usually left out and follows from what comes next.
_UNNESTED = re.compile(
    "area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr|"
    "p|li|dt|dd|option|optgroup|tr|td|th|thead|tbody|tfoot|colgroup|rp|rt|html|head|body",
    re.IGNORECASE,
)


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


def page_text(response: bytes, limit: int) -> str:
    """The main text of an HTTP response (status line, header and body) that is an HTML page.

    Comments, menus, forms and what is hidden are left out; paragraphs stay apart.

    Args:
        response: the bytes as a server sent them; chunks and the compressions gzip, deflate and br are undone.
        limit: largest size of the page, uncompressed, in bytes.

    Raises:
        NoText: ``http_status`` (not 200), ``not_html``, ``page_damaged`` (header or compression), ``page_too_large``,
            ``page_charset`` (its bytes are not in the encoding that it declares), ``page_too_deep``, or
            ``no_main_text``.
    """
    from warcio.bufferedreaders import ChunkedDataReader
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
    if (head.get_header("transfer-encoding") or "").strip().lower() == "chunked":
        body = b"".join(_pieces(ChunkedDataReader(stream)))
    else:
        body = stream.read()
    html = decoded(_unpacked(body, (head.get_header("content-encoding") or "").strip().lower(), limit), kind)
    return _main_text(html)


def _pieces(reader: io.BytesIO) -> Iterator[bytes]:
    while piece := reader.read(1 << 16):
        yield piece


def _unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its compression, of which little more than `limit` bytes are unpacked whatever it holds."""
    result = body
    # Some crawlers undo the compression and leave the header as it was.
    if encoding not in ("", "identity") and body.lstrip()[:1] != b"<":
        try:
            result = _expand(body, encoding, limit + 1)
        except (zlib.error, ValueError, LookupError) as error:
            raise NoText("page_damaged") from error
    if len(result) > limit:
        raise NoText("page_too_large")
    return result


def _expand(body: bytes, encoding: str, limit: int) -> bytes:
    """The first `limit` bytes, or a few more. Raises zlib.error, ValueError or LookupError."""
    if encoding in ("gzip", "x-gzip"):
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(body, limit)
    if encoding == "deflate":
        try:
            return zlib.decompressobj().decompress(body, limit)
        except zlib.error:  # many servers leave the wrapping out
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(body, limit)
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
    declared = [match[1] for match in [_CHARSET.search(content_type)] if match]
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

    if _too_deep(html):
        raise NoText("page_too_deep")
    try:
        text = extract_plain_text(html, preserve_formatting=True, main_content=True, alt_texts=False, comments=False)
    except BaseException as error:
        # A panic in the library's Rust arrives as a BaseException of its own.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise NoText("no_main_text") from error
        raise
    if not text.strip():
        raise NoText("no_main_text")
    return text


def _too_deep(html: str) -> bool:
    if html.count("<") <= DEEPEST:
        return False
    depth = 0
    for end, name in _TAG.findall(html):
        if not _UNNESTED.fullmatch(name):
            depth = max(0, depth - 1) if end else depth + 1
            if depth > DEEPEST:
                return True
    return False
