"""Section 5: the memory of our loader over very many batches."""

from __future__ import annotations

from benchmarks.data.readers import Library
from benchmarks.data.runner import Contestant, Runner
from benchmarks.data.tables import Goal, Section

#: A small batch and sequence, so that very many batches can be read, and a cache that must evict.
_BATCH, _LENGTH, _CACHE_BYTES = 8, 256, 2 << 20


def measure(runner: Runner, library: Library) -> Section:
    """Read, and note the memory. One round: the figures are of one process. Raises BenchError."""
    sizes = library.sizes
    arguments = {
        "path": str(library.ours()),
        "length": _LENGTH,
        "batch": _BATCH,
        "cache_bytes": _CACHE_BYTES,
        "stops": list(sizes.memory_batches),
    }
    runner.say("memory of the loader")
    found = runner.attempt(Contestant("memory", "ours", "memory.ours", arguments))
    rss: dict[int, float] = {int(batches): mib for batches, mib in found["rss_mib"].items()}
    section = Section(key="memory", title="Memory of the loader", columns=("batches", "resident, MiB"), checks=found)
    section.rows = [[f"{batches:,}", mib] for batches, mib in sorted(rss.items())]
    first, last = sizes.memory_batches[-2:]
    growth = (rss[last] - rss[first]) / (last - first) * 10_000
    section.goals.append(
        Goal.most(f"flat: at most 1 MiB more in 10,000 batches, from {first:,} to {last:,} (MiB)", growth, 1.0)
    )
    section.remarks.append(
        f"Batches of {_BATCH} sequences of {_LENGTH} tokens, shuffled, with prefetch, over {found['epochs']:.1f} "
        f"epochs of {sizes.sequences * sizes.length * 2 / 1e6:.0f} MB; the cache of "
        f"{_CACHE_BYTES >> 20} MiB cannot hold them."
    )
    return section
