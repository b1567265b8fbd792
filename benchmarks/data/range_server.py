"""A small HTTP server of one directory with byte ranges, for machines without nginx.

    python -m benchmarks.data.range_server DIRECTORY

Prints its port, serves on loopback and ends when its standard input does.
"""

from __future__ import annotations

import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_NAME = re.compile(r"/[A-Za-z0-9_][A-Za-z0-9_./-]*")


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for files below `directory`."""

    protocol_version = "HTTP/1.1"
    directory = Path()

    def do_GET(self) -> None:
        """A file, or one range of it."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Its size."""
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        file = self.directory / self.path.lstrip("/")
        if not _NAME.fullmatch(self.path) or ".." in self.path or not file.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = file.stat().st_size
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        first, last = (int(match[1]), min(int(match[2]), size - 1)) if match else (0, size - 1)
        self.send_response(206 if match else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("ETag", f'"{size:x}"')
        if match:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if body:
            with file.open("rb") as handle:
                handle.seek(first)
                self.wfile.write(handle.read(last + 1 - first))

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def main() -> None:
    """Serve the directory of the command line."""
    Handler.directory = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
