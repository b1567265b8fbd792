"""All drills at full size, as a table: `python -m tests.drills [--kills 200] [--harms 1000] [--write FILE]`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.tables import Table
from pretrain.markdown import check_section, write_section
from tests.conftest import build_tiny_dataset
from tests.drills import bytes as harms
from tests.drills import kills

SECTION = "make drills"


def main() -> None:
    """Runs the drills and prints or writes what came of them; exits with 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--harms", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if options.write is not None:
        check_section(options.write, SECTION)
    with tempfile.TemporaryDirectory(prefix="drills-") as name:
        folder = Path(name)
        dataset = build_tiny_dataset(folder / "tiny")
        small = build_tiny_dataset(folder / "small", topics=kills.TOPICS)
        killed = kills.drill(_made(folder / "kills"), small, options.kills, options.seed)
        saved = harms.checkpoints(folder / "kills" / "reference", _made(folder / "saved"), options.harms, options.seed)
        read = harms.shards(dataset, _made(folder / "read"), options.harms, options.seed)
    text = "\n".join(table.markdown() for table in tables(killed, saved, read))
    print(text)
    if options.write is not None:
        write_section(options.write, SECTION, text)
    raise SystemExit(bool(killed.different or killed.failed_restarts or saved.missed or read.missed))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def tables(killed: kills.Kills, saved: harms.Harm, read: harms.Harm) -> list[Table]:
    """For people."""
    one = Table("SIGKILL to both ranks at random moments", ("moment", "kills"))
    for phase, count in killed.phases.most_common():
        one.rows.append([phase, str(count)])
    one.rows.append(["all", str(killed.kills)])
    machine = describe()
    one.remarks.append(
        f"{killed.runs} runs of 60 steps on {machine['cores']} cores of {machine['processor']}, "
        f"{killed.seconds:,.0f} s. Restarts that failed: {killed.failed_restarts}."
    )
    one.remarks.append(
        "Differences from the undisturbed run, in any step's loss, norm and rate, any validation, the final weights' "
        "bytes and the position in the data, and sequences or tokens that the ranks of a run were not given exactly "
        f"once an epoch (each run reads {killed.epochs:.1f} epochs): {len(killed.different)}."
    )
    two = Table(
        "A bit flipped, a file cut short or deleted, one at a time",
        ("where", "harms", "noticed before use", "harmless", "missed"),
    )
    for name, found in (("checkpoint", saved), ("shard", read)):
        two.rows.append([name, str(found.done), str(found.noticed), str(found.harmless), str(len(found.missed))])
    two.remarks.append(
        "Checkpoint: any of its files; the one before is used, and the damaged one is kept aside. Shard: all blocks "
        "are read; what is noticed names the shard, and harmless is what leaves every token as it was."
    )
    return [one, two]


if __name__ == "__main__":
    main()
