"""A worker process of a build: ``python -m data_pipeline.build_worker WORKDIR``, tasks on standard input."""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from typing import Any, TextIO

from data_pipeline.build_plan import Task
from data_pipeline.build_pool import plan_of, run_task
from data_pipeline.errors import DataError, Interrupted


def main() -> None:
    """Do the tasks that come in, one line of JSON each, and answer each with a line of JSON."""
    # Ctrl-C reaches the whole group of processes; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = sys.stdout
    sys.stdout = sys.stderr  # nothing else may write between the answers
    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin, tasks), daemon=True).start()
    while True:
        answers.write(json.dumps(answer(sys.argv[1], tasks.get())) + "\n")
        answers.flush()


def _listen(lines: TextIO, tasks: queue.SimpleQueue[Task]) -> None:
    for line in lines:
        tasks.put(json.loads(line))
    os._exit(0)  # the parent is gone, and so is whoever wanted the task at hand


def answer(directory: str, task: Task) -> dict[str, Any]:
    """Do one task; gives what it handled, or the sentence of its failure."""
    try:
        documents, bytes_ = run_task(plan_of(directory), task)
    except DataError as error:
        return {"error": str(error), "kept": isinstance(error, Interrupted)}
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return {"error": f"{where}{error.strerror or error}", "errno": error.errno}
    return {"documents": documents, "bytes": bytes_}


if __name__ == "__main__":
    main()
