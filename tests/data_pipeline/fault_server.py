"""An HTTP and S3-like server on loopback that misbehaves on request; also a plain one when there is no fault."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
import time
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote

#: Faults of one answer to a GET.
FAULTS = ("cut", "stall", "reset", "busy", "etag", "flip", "short", "whole", "slow", "denied", "gone", "range")


class FaultServer:
    """Serves a directory; each GET of a file that matches `only` takes the next of `faults`, if there is one.

    `always` is a fault of every such GET. `seen` counts faults and requests; `headers` and `names` keep those
    of each request.
    """

    def __init__(self, root: Path, only: str = r"\.tar$", port: int = 0) -> None:
        self.root, self.only, self.port = root, re.compile(only), port
        self.dead = False
        self.encoding: str | None = None  # Content-Encoding of every file
        self.etags = True  # whether files and listings have any
        self.page = 1000  # objects of one answer to a listing
        self.faults: deque[str] = deque()
        self.always: str | None = None
        self.stall_s = 1.0
        self.seen: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.names: list[str] = []

    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

            def log_message(self, *arguments):
                return

            def do_HEAD(self):
                outer.answer(self, head=True)

            def do_GET(self):
                outer.answer(self, head=False)

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *arguments):
        self._server.shutdown()
        self._server.server_close()

    def kill(self):
        """Stop listening, and hang up on every connection at its next request, as the end of a process does."""
        self.dead = True
        self.__exit__()

    def answer(self, handler, head):
        if self.dead:
            handler.close_connection = True
            return
        place, _, query = handler.path.partition("?")
        path = self.root / unquote(place).lstrip("/")
        listing = None if head or "list-type=2" not in query else self._listing(path, parse_qs(query))
        self.seen["HEAD" if head else "GET"] += 1
        self.names.append(handler.path)
        self.headers.append({k.lower(): v for k, v in handler.headers.items()})
        if listing is None and not path.is_file():
            self._plain(handler, 404)
            return
        fault = None
        if not head and self.only.search(handler.path):
            fault = self.faults.popleft() if self.faults else self.always
        if fault is not None:
            self.seen[fault] += 1
        codes = {"denied": 403, "gone": 404, "range": 416}
        if fault in codes:
            self._plain(handler, codes[fault])
        elif fault == "busy":
            self._plain(handler, 503, {"Retry-After": "7"})
        elif fault == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
            handler.connection.close()
        else:
            self._file(handler, path.read_bytes() if listing is None else listing, fault, head)

    def _listing(self, bucket, query):
        """A page of the objects of a bucket, as ListObjectsV2 gives it; a token is the last key of a page."""
        prefix, token = query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]
        keys = sorted(p.relative_to(bucket).as_posix() for p in bucket.rglob("*") if p.is_file())
        keys = [key for key in keys if key.startswith(prefix) and key > token]
        rows = "".join(
            f"<Contents><Key>{quote(key)}</Key><Size>{(bucket / key).stat().st_size}</Size>"
            + (f"<ETag>{etag_of((bucket / key).read_bytes())}</ETag>" if self.etags else "")
            + "</Contents>"
            for key in keys[: self.page]
        )
        more = len(keys) > self.page
        rows += f"<NextContinuationToken>{keys[self.page - 1]}</NextContinuationToken>" if more else ""
        return (
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><EncodingType>url</EncodingType>'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{rows}</ListBucketResult>"
        ).encode()

    def _file(self, handler, data, fault, head):
        etag = etag_of(data)
        if handler.headers.get("If-Match", etag) != etag:
            self._plain(handler, 412)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        status, headers = 200, {"ETag": '"another"' if fault == "etag" else etag} if self.etags else {}
        if wanted and fault != "whole":
            first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
            if first >= len(data):
                self._plain(handler, 416)
                return
            if fault == "short":
                last = (first + last) // 2
            status, total = 206, len(data)
            data = data[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        if self.encoding is not None:
            headers["Content-Encoding"] = self.encoding
        if fault == "flip":
            data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 8]) + data[len(data) // 2 + 1 :]
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if head:
            return
        self._body(handler, data, fault)

    def _body(self, handler, data, fault):
        try:
            if fault in ("cut", "stall"):
                handler.wfile.write(data[: len(data) // 2])
                handler.wfile.flush()
                handler.close_connection = True
                if fault == "stall":
                    time.sleep(self.stall_s)
            elif fault == "slow":
                for begin in range(0, len(data), 50):
                    handler.wfile.write(data[begin : begin + 50])
                    time.sleep(0.04)
            else:
                handler.wfile.write(data)
        except OSError:
            handler.close_connection = True

    def _plain(self, handler, status, headers=None):
        handler.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": "0"}.items():
            handler.send_header(name, value)
        handler.end_headers()


def etag_of(data):
    return f'"{hashlib.md5(data).hexdigest()}"'
