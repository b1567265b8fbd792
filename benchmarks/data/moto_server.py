"""moto's S3 in a process of its own: prints its URL, and ends when its standard input does."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Serve on loopback, at a free port."""
    answers = os.dup(1)
    os.dup2(2, 1)
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.write(answers, f"http://{host}:{port}\n".encode())
    sys.stdin.read()
    os._exit(0)  # without the server's slow farewell


if __name__ == "__main__":
    main()
