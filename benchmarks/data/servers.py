"""Servers on loopback for the remote measurements, as context managers: nginx or our own for HTTP, moto for S3."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.errors import BenchError

_START_S = 20.0
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextmanager
def http_server(root: Path, work: Path, environment: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Serve a directory; gives the server's name and URL. Raises BenchError if it does not start."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        command = [sys.executable, "-m", "benchmarks.data.range_server", str(root)]
        with _talking(command, environment) as port:
            yield "Python's threaded server", f"http://127.0.0.1:{port}"
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    folder = work / "nginx"
    folder.mkdir()
    paths = "".join(f"{name}_temp_path {folder / name};" for name in _TEMPORARY)
    user = "user root; " if Path.home() == Path("/root") else ""
    (folder / "nginx.conf").write_text(
        f"{user}daemon off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; keepalive_requests 1000000; {paths} "
        f"server {{ listen 127.0.0.1:{number}; root {root}; }} }}\n",
        encoding="utf-8",
    )
    server = subprocess.Popen(
        [nginx, "-c", str(folder / "nginx.conf"), "-p", str(folder)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        _wait_for(number, server)
        yield "nginx", f"http://127.0.0.1:{number}"
    finally:
        server.terminate()
        server.wait(10)
        shutil.rmtree(folder)


@contextmanager
def s3_server(python: str, environment: dict[str, str]) -> Iterator[str]:
    """moto's S3 under an interpreter that has it; gives its URL. Raises BenchError if it does not start."""
    with _talking([python, "-m", "benchmarks.data.moto_server"], environment) as url:
        yield url


@contextmanager
def _talking(command: list[str], environment: dict[str, str]) -> Iterator[str]:
    """A server that prints one line once it serves and ends with its standard input; gives the line."""
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        line = server.stdout.readline().strip()
        if not line:
            raise BenchError(f"{' '.join(command[1:])} does not start: run it by hand to see why.")
        yield line
    finally:
        server.stdin.close()
        server.stdout.close()
        server.wait(10)


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise BenchError("nginx does not start on loopback: remove it, and Python's own server is used instead.")
