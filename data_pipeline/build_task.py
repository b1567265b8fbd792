"""One task of a build that several machines share: ``python -m data_pipeline.build_task LAUNCH_FOLDER NAME``."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from data_pipeline.build_array import GIVEN_UP, work
from data_pipeline.errors import DataError


def main() -> None:
    """Work until the build is over; SIGTERM and Ctrl-C let go of what is not finished. Exits as :func:`work` says."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        raise SystemExit(work(Path(sys.argv[1]), sys.argv[2], stop))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(GIVEN_UP) from None


if __name__ == "__main__":
    main()
