"""A run whose folder is a small tmpfs that somebody fills; started by `test_full_disk` where it may mount one.

    python -m tests.e2e.small_disk FOLDER CONFIG freed|full

Once the first checkpoint is there, a file takes all space but what a checkpoint is expected to need, which is less
than it does. `freed`: the file goes when a checkpoint has failed. `full`: it goes after the run has ended, which is
then started again. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from pretrain import metrics
from pretrain.checkpoint import CheckpointStore, newest
from pretrain.files import sha256
from tests.e2e.runs import ROOT, command, training

SIZE = 24 << 20
FAILED = "could not be written"


def main() -> None:
    run, config, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    run.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(run)], check=True)
    filler = run / "filler"

    def watch() -> None:
        while not any(CheckpointStore(run / "checkpoints").all()):
            pass
        first = CheckpointStore(run / "checkpoints").all()[0]
        expected = 20 * (first.weights.stat().st_size // 4)  # as Saving reckons
        room = shutil.disk_usage(run).free - expected - (64 << 10)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, room)

    threading.Thread(target=watch, daemon=True).start()
    codes, words = [], []
    for _ in range(1 if how == "freed" else 2):
        job = subprocess.Popen(command("train", config, "--ranks", 2), cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert job.stderr is not None
        for line in job.stderr:
            words.append(line)
            if how == "freed" and FAILED in line:
                filler.unlink(missing_ok=True)
        codes.append(job.wait())
        filler.unlink(missing_ok=True)
    store = CheckpointStore(run / "checkpoints")
    records = metrics.read(run / "metrics.jsonl")
    found = {
        "codes": codes,
        "steps": list(training(run)),
        "checkpoints": [c.step for c in store.all()],
        "damaged": [c.step for c in store.all() if c.problems()],
        "failed": [r["problem"] for r in records if r.get("event") == "save_failed"],
        "weights": sha256(newest(run / "checkpoints").weights),
        "words": "".join(words),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
