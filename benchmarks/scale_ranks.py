"""What a trillion tokens cost 4,096 ranks: their start, a seek, a resume at any step, and the shared file system.

    python -m benchmarks.scale_ranks [--directory DIR] [--write docs/scale.md]

The dataset is that of `benchmarks.scale`: real index and tables, and shards that are empty files of the right sizes,
whose blocks of zeros are read and checked like any. One rank is measured in a process of its own; what all ranks do
together follows by multiplying, because no rank's start depends on another's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from benchmarks.process import ROOT
from benchmarks.scale import write_dataset
from benchmarks.tables import Cell, Table, shown
from pretrain.markdown import check_section, write_section

SECTION = "benchmarks/scale_ranks.py"
TOKENS, RANKS, PER_NODE, SEQ_LEN, ROWS = 1_000_000_000_000, 4096, 8, 2048, 2
BATCH = RANKS * ROWS
RANK, STEP = RANKS - 1, 1_000_000
STEPS = (0, 1000, STEP, 10 * STEP)
SEEKS, RESUMES = 200, 20


def measure(directory: Path) -> dict[str, Any]:
    """In this process, as the last rank: opening, resuming, seeking, and the state of a checkpoint."""
    from data_pipeline.corpus import Corpus
    from data_pipeline.loader import Loader
    from pretrain import data_plan
    from pretrain.config import RunConfig
    from pretrain.state import DataState

    files = _Files()
    before, read = _status(), _bytes_read()
    spent = time.process_time()
    opened = _seconds(lambda: Corpus.open({"train": directory}))
    spent = time.process_time() - spent
    corpus: Corpus = opened[1]
    known = {"data": {"path": str(directory), "seq_len": SEQ_LEN}, "train": {"global_batch": BATCH}}
    config = RunConfig.model_validate({**known, "model": {"d_model": 64, "n_layers": 2}, "run_dir": "/nowhere"})
    state = DataState(made_with=data_plan.identity(config, corpus))

    def resumed(step: int) -> tuple[float, float, float]:
        """Milliseconds: the order anew, the places of the rank's rows, and their first batch read."""
        stream_s, stream = _seconds(lambda: data_plan.stream(config, corpus, state))
        loader = Loader(
            stream, global_batch=BATCH, rank=RANK, world=RANKS, start_sequence=step * BATCH, start_step=step, prefetch=0
        )
        own = np.arange(ROWS) + step * BATCH + RANK * ROWS
        located, _ = _seconds(lambda: stream.locate_all(own))
        got, batch = _seconds(lambda: loader.read(step * BATCH, step))
        assert batch.tokens.shape == (ROWS, SEQ_LEN) and not batch.tokens.any(), "zeros, as they are stored"
        return 1e3 * stream_s, 1e3 * located, 1e3 * got

    found: dict[str, Any] = {
        "open_s": opened[0],
        "open_cpu_s": spent,
        "files": files.opened(directory),
        "first": resumed(STEP),
    }
    after = _status()
    found["read_bytes"] = _bytes_read() - read
    found["own_mib"] = after["RssAnon"] - before["RssAnon"]
    found["mapped_mib"] = after["RssFile"] - before["RssFile"]
    found["resumes"] = {step: np.median([resumed(step) for _ in range(RESUMES)], axis=0).tolist() for step in STEPS}
    found["seeks"] = _seeks(data_plan.stream(config, corpus, state).orders[0])
    returned = state.model_copy(update={"returns": [(STEP * BATCH, STEP)] * 10})
    found["state_bytes"] = [len(each.model_dump_json()) for each in (state, returned)]
    found["epoch_steps"] = data_plan.stream(config, corpus, state).orders[0].sequences_per_epoch // BATCH
    return found


def _seeks(order: Any) -> list[float]:
    """Milliseconds to find sequences anywhere in the first hundred epochs, each in another epoch than the last."""
    draw = np.random.default_rng(0)
    places = draw.integers(0, order.sequences_per_epoch, SEEKS) + draw.permutation(SEEKS) * order.sequences_per_epoch
    return [1e3 * _seconds(lambda k=int(k): order.locate(k))[0] for k in places]  # type: ignore[misc]


class _Files:
    """Counts the files that this process opens."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            self._paths.append(str(arguments[0]))

    def opened(self, directory: Path) -> int:
        """In this directory, so far."""
        return sum(path.startswith(str(directory)) for path in self._paths)


def _seconds(act: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    value = act()
    return time.perf_counter() - began, value


def _status() -> dict[str, float]:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


def _bytes_read() -> int:
    """By system calls; mapped pages come on top."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


def one_rank(found: dict[str, Any]) -> Table:
    """Its start and its seeks."""
    title = f"One rank of {RANKS:,} on {TOKENS:.0e} tokens".replace("+", "")
    table = Table(title, ("", "figure"))
    first, seeks, steps = found["first"], found["seeks"], found["epoch_steps"]
    again: list[list[Cell]] = [
        [f"again at step {int(step):,}: order, places and batch, ms", " + ".join(map(shown, times))]
        for step, times in found["resumes"].items()
    ]
    table.rows = [
        ["global batch, sequences (and lanes)", f"{BATCH:,}"],
        ["tokens of a batch", f"{BATCH * SEQ_LEN:,}"],
        ["steps of an epoch", f"{steps:,}"],
        [f"step {STEP:,} is in epoch", f"{STEP // steps}"],
        ["open and check, s", found["open_s"]],
        ["... of processor time, s", found["open_cpu_s"]],
        [f"rank {RANK:,} at step {STEP:,}, just opened: the order, ms", first[0]],
        ["... its rows are located, ms", first[1]],
        ["... its first batch is read and checked, ms", first[2]],
        *again,
        [f"a seek into an epoch not yet touched, median of {SEEKS}, ms", statistics.median(seeks)],
        ["... the 99th percentile, ms", statistics.quantiles(seeks, n=100)[-1]],
        ["memory of its own after the first batch, MiB", found["own_mib"]],
        ["mapped tables that the ranks of a node share, MiB", found["mapped_mib"]],
        ["the data's position in a checkpoint, bytes", f"{found['state_bytes'][0]:,}"],
        ["... after ten rollbacks, bytes", f"{found['state_bytes'][1]:,}"],
    ]
    machine = describe()
    table.remarks.append(
        f"{machine['cores']} cores of {machine['processor']} with other work (load {machine['load_before']:.0f}): "
        "times are upper bounds, and what is to be seen is that they do not depend on the step. Files are in the page "
        f"cache. Of three starts the quickest. `again`: the median of {RESUMES} streams made anew on the open dataset."
    )
    return table


def all_ranks(sizes: dict[str, int], found: dict[str, Any]) -> Table:
    """What they do to the shared file system, by multiplying."""
    nodes, one = RANKS // PER_NODE, sizes["index_json_bytes"] + sizes["blocks_table_bytes"] + sizes["tokenizer_bytes"]
    table = Table(f"A start of {RANKS:,} ranks on {nodes} nodes, on the shared file system", ("", "a rank", "all"))
    table.rows = [
        ["index, table of blocks and tokenizer, bytes", f"{one:,}", f"{one * RANKS:,}"],
        ["... once a node, where its ranks share a cache", "–", f"{one * nodes:,}"],
        ["files opened until training", f"{found['files']:,}", f"{found['files'] * RANKS:,}"],
        ["shards whose sizes are asked", f"{sizes['shards']:,}", f"{sizes['shards'] * RANKS:,}"],
        ["shards opened for the first batch, at most", f"{2 * ROWS}", f"{2 * ROWS * RANKS:,}"],
    ]
    table.remarks.append(
        f"Exact, from the files ({sizes['blocks']:,} blocks, {sizes['shards']:,} shards) and from counting what a rank "
        f"opens; a rank read {found['read_bytes']:,} bytes by system calls, its first batch included."
    )
    return table


def main() -> None:
    """Writes the dataset, measures a rank, and prints or writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="where the dataset is written; a temporary one otherwise")
    parser.add_argument("--write", type=Path, help="put the tables between the markers of this Markdown file")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(measure(options.open)))
        return
    if options.write is not None:
        check_section(options.write, SECTION)
    with tempfile.TemporaryDirectory(prefix="pha-scale-", dir=options.directory) as name:
        directory = Path(name) / "dataset"
        sizes = write_dataset(directory, TOKENS)
        sizes["tokenizer_bytes"] = sum(path.stat().st_size for path in directory.glob("*.model"))
        command = [sys.executable, "-m", "benchmarks.scale_ranks", "--open", str(directory)]
        runs = []
        for _ in range(3):
            done = subprocess.run(command, capture_output=True, check=False, text=True, cwd=ROOT)
            if done.returncode:
                sys.exit(f"error: a rank's start failed: {done.stderr}")
            runs.append(json.loads(done.stdout))
        found = min(runs, key=lambda run: float(run["open_s"]))
    text = f"{one_rank(found).markdown()}\n{all_ranks(sizes, found).markdown()}"
    print(text)
    if options.write is not None:
        write_section(options.write, SECTION, text)


if __name__ == "__main__":
    main()
