"""Section 2: an epoch of shuffled sequences in batches, from a warm page cache."""

from __future__ import annotations

from benchmarks.data.readers import READERS, Library, Reader
from benchmarks.data.runner import Contestant, Outcome, Runner
from benchmarks.data.tables import Goal, Section, ratio
from benchmarks.errors import BenchError

#: Each process that imports torch costs seconds.
_QUICK_KEYS = ("ours-raw",)


def measure(runner: Runner, library: Library, thorough: bool = True) -> Section:
    """Check each reader (which also warms the page cache), then measure all in turn.

    `thorough` compares all readers, and also flips a stored byte and resumes in the middle, to see what each
    reader makes of it. Raises BenchError.
    """
    section = Section(
        key="reading",
        title="Reading",
        columns=(
            "",
            "sequences/CPU-s",
            "× webdataset",
            "sequences/s",
            "shuffles",
            "all once",
            "notices a flipped byte",
            "resumes exactly",
        ),
    )
    readers = READERS if thorough else [reader for reader in READERS if reader.key in _QUICK_KEYS]
    facts = {reader.key: _facts(runner, library, reader, thorough) for reader in readers}
    section.outcomes = {key: fact for key, fact in facts.items() if isinstance(fact, Outcome)}
    section.checks = {key: fact for key, fact in facts.items() if not isinstance(fact, Outcome)}
    contestants: list[Contestant] = [
        library.contestant(reader, "speed") for reader in readers if reader.key not in section.outcomes
    ]
    section.outcomes |= runner.measure(contestants)
    bases = [section.outcomes[reader.key].rate("items", "cpu_s") for reader in readers if reader.baseline]
    for reader in readers:
        outcome, fact = section.outcomes[reader.key], section.checks.get(reader.key, {})
        rate = outcome.rate("items", "cpu_s")
        section.add(
            outcome,
            rate,
            ratio(rate, bases[0] if bases else None),
            outcome.rate("items", "wall_s"),
            reader.shuffles,
            *(_word(fact.get(name)) for name in ("all_once", "notices_damage", "resumes_exactly")),
        )
    ours = section.outcomes["ours-raw"].rate("items", "cpu_s")
    section.goals.append(Goal.least("ours at least 200,000 sequences a CPU-second", ours, 200_000))
    sizes = library.sizes
    section.remarks += [
        f"{sizes.sequences:,} sequences of {sizes.length:,} uint16 tokens "
        f"({sizes.sequences * sizes.length * 2 / 1e6:.0f} MB), the same stream in each library's own format; batches "
        "of 32 as torch tensors, in one process without workers; the dataset is open before the clock starts.",
        "Ours verifies the checksum of every block. Its sequences are cut along shuffled blocks, so that all of an "
        "epoch's labels are checked instead of the sequences.",
    ]
    return section


def _facts(runner: Runner, library: Library, reader: Reader, thorough: bool) -> dict[str, bool | None] | Outcome:
    """What is found out about a reader, or the outcome that says why nothing is. Raises BenchError for ours."""
    if missing := runner.missing(reader.needs):
        return Outcome(reader.label, problem=f"not installed ({', '.join(missing)})")
    try:
        facts: dict[str, bool | None] = {"all_once": library.reads_all(reader)}
        if thorough:
            facts["notices_damage"] = library.notices_damage(reader)
            stop = library.stops[0.5]
            facts["resumes_exactly"] = library.is_next(reader, stop, runner.attempt(library.resume(reader, stop)))
    except BenchError as error:
        if not reader.needs:
            raise
        return Outcome(reader.label, problem=str(error))
    return facts


def _word(fact: bool | None) -> str:
    return "not tested" if fact is None else "yes" if fact else "no"
