"""What near-duplicate removal costs at scale: time, memory, disk, and what it finds of copies that were planted.

    python benchmarks/near_dedup.py [--documents N] [--directory DIR] [--json]

Synthetic documents of 100 to 200 words go through the stage of a build (data_pipeline/overlaps.py), for N / 5 and for N
documents, each in a process of its own. One in ten is a near copy of another one that came long before (one or two
words replaced: Jaccard similarity 0.8 to 0.97), one in twenty shares half of its words with another (similarity about
0.33) and must stay. From the two sizes follows what each further document takes, and from that the peak at eight
million, OpenWebText's size.

Seconds are of the whole, CPU seconds of the stage without the making of the documents. `anonymous` is the memory that
must be there (sampled); `resident` is its peak with the pages of mapped files, which the system gives up when it needs
them; both are growth over the process before the stage. A document that was dropped though no near copy of it was
planted is a false positive.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipeline.config import CleanConfig, NearDedupConfig
from data_pipeline.near_dedup import memory_estimate
from data_pipeline.overlaps import find_overlaps
from data_pipeline.split import HASH_BYTES, document_hash

_VOCABULARY = 50_000
_AT_ONCE = 1000
_OPENWEBTEXT = 8_000_000
_WORDS = np.array([f"w{number:x}" for number in range(_VOCABULARY)])


def originals(batch: int) -> list[np.ndarray]:
    """Word numbers of the documents of a batch, with frequencies like those of words (Zipf)."""
    rng = np.random.default_rng([1, batch])
    numbers = np.power(_VOCABULARY, rng.random((_AT_ONCE, 200))).astype(np.int64)
    return [row[:length] for row, length in zip(numbers, rng.integers(100, 201, _AT_ONCE), strict=True)]


def near_copies(batch: int) -> list[np.ndarray]:
    """The documents of a batch, each with one or two words replaced."""
    rng = np.random.default_rng([2, batch])
    copies = []
    for row in originals(batch):
        copy = row.copy()
        places = rng.integers(0, len(copy), rng.integers(1, 3))
        copy[places] = (copy[places] + rng.integers(1, _VOCABULARY, len(places))) % _VOCABULARY
        copies.append(copy)
    return copies


def half_copies(batch: int) -> list[np.ndarray]:
    """The documents of a batch, with the second half of each replaced."""
    others = originals(10**6 + batch)
    return [np.concatenate([row[: len(row) // 2], other]) for row, other in zip(originals(batch), others, strict=True)]


def corpus(documents: int, hashes: Path) -> Iterator[tuple[bytes, str]]:
    """All documents; the hashes go to a file, in this order: originals, near copies, half copies."""
    batches = documents // _AT_ONCE
    copies, halves = batches // 10, batches // 20
    with hashes.open("wb") as file:
        for make, first, last in (
            (originals, 0, batches - copies - halves),
            (near_copies, 0, copies),
            (half_copies, copies, copies + halves),
        ):
            for batch in range(first, last):
                for row in make(batch):
                    text = " ".join(_WORDS[row])
                    hash_ = document_hash(text)
                    file.write(hash_)
                    yield hash_, text


class Watch(threading.Thread):
    """Samples the process's anonymous memory and the bytes in a directory; keeps the highest."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self.directory, self.anonymous, self.disk = directory, 0, 0
        self._done = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        while not self._done.wait(0.02):
            self.anonymous = max(self.anonymous, status("RssAnon"))
            sizes = (path.stat().st_size for path in self.directory.glob("near-*") if path.exists())
            self.disk = max(self.disk, sum(sizes))

    def stop(self) -> None:
        """End sampling."""
        self._done.set()
        self.join()


def status(field: str) -> int:
    """A memory figure of this process, in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


def measure(documents: int, folder: Path | None) -> dict[str, float | int]:
    """The figures of one size, in this process."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        directory = Path(name)
        (directory / "work").mkdir()
        for _ in zip(range(2 * _AT_ONCE), corpus(20 * _AT_ONCE, directory / "hashes"), strict=False):
            pass  # what the generator itself needs is there before the stage begins
        before = {field: status(field) for field in ("RssAnon", "VmHWM")}
        watch = Watch(directory / "work")
        watch.start()
        started, used = time.perf_counter(), time.process_time()
        found = find_overlaps(
            CleanConfig(near_dedup=NearDedupConfig()),
            lambda: corpus(documents, directory / "hashes"),
            lambda hash_: False,
            directory / "work",
        )
        seconds, used = time.perf_counter() - started, time.process_time() - used
        watch.stop()
        peak = status("VmHWM")
        assert found.near is not None
        report = found.near[1]
        hashes = np.fromfile(directory / "hashes", f"S{HASH_BYTES}")
        gone = np.array([found.near[0].contains(hash_.ljust(HASH_BYTES, b"\0")) for hash_ in hashes.tolist()])
        making = time.process_time()
        for _ in corpus(documents // 10, directory / "hashes"):
            pass
        making = (time.process_time() - making) * 10
    batches = len(gone) // _AT_ONCE
    copies, halves = batches // 10 * _AT_ONCE, batches // 20 * _AT_ONCE
    sources = len(gone) - copies - halves
    pairs = gone[:copies] | gone[sources : sources + copies]
    return {
        "documents": len(gone),
        "seconds": seconds,
        "cpu_seconds": used - making,
        "documents_per_cpu_s": len(gone) / (used - making),
        "anonymous_mib": (watch.anonymous - before["RssAnon"]) / 2**20,
        "resident_mib": (peak - before["VmHWM"]) / 2**20,
        "estimate_mib": memory_estimate(len(gone)) / 2**20,
        "disk_bytes_per_document": watch.disk / len(gone),
        "planted": copies,
        "recall": float(pairs.mean()),
        "false_positives": int(gone[copies:sources].sum() + gone[sources + copies :].sum()),
        "candidate_pairs": report.candidates,
    }


def main() -> None:
    """Measures N / 5 and N documents in a process each, and prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000, help="N, a multiple of 100,000")
    parser.add_argument("--directory", type=Path, help="where the work files lie; they are removed")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.directory)))
        return
    folder = ["--directory", str(options.directory)] if options.directory else []
    rows = []
    for size in (options.documents // 5, options.documents):
        command = [sys.executable, __file__, "--one", str(size), *folder]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    small, large = rows
    further = large["documents"] - small["documents"]
    slope = (large["anonymous_mib"] - small["anonymous_mib"]) / further
    at_8m = large["anonymous_mib"] + slope * (_OPENWEBTEXT - large["documents"])
    result = {"bytes_per_document": slope * 2**20, "anonymous_mib_at_8_million": at_8m}
    if options.json:
        print(json.dumps({"sizes": rows, **result}, indent=1))
        return
    for name in small:
        print(name.ljust(24), *(f"{row[name]:>16,.3f}".removesuffix(".000").rjust(16) for row in rows))
    print(f"each further document: {result['bytes_per_document']:.0f} bytes; at 8 million: {at_8m:,.0f} MiB")


if __name__ == "__main__":
    main()
