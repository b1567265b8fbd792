"""Section 3: from a new process to the first batch, at the start of an epoch and within it."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.data.readers import PLACES, READERS, Library, Reader
from benchmarks.data.runner import Contestant, Outcome, Runner
from benchmarks.data.tables import Goal, Section
from benchmarks.errors import BenchError
from benchmarks.tables import Cell

#: The rows: one way to resume for each library and form of data.
_KEYS = (
    *("ours-raw", "memmap", "webdataset", "webdataset-64", "mosaic-loader", "litdata-loader"),
    *("datasets", "datasets-iterable"),
)
_QUICK_KEYS = ("ours-raw",)


def measure(runner: Runner, library: Library, thorough: bool = True) -> Section:
    """Measure all readers at all places in turn. Raises BenchError."""
    places = PLACES if thorough else PLACES[1:2]
    section = Section(
        key="resume",
        title="Resume",
        columns=("", "cold, ms", *(f"at {place:.0%}, ms" for place in places), "batch exact"),
    )
    readers = [reader for reader in READERS if reader.key in (_KEYS if thorough else _QUICK_KEYS)]
    stops = [0, *(library.stops[place] for place in places)]
    problems: dict[str, Outcome] = {}
    contestants: list[Contestant] = []
    for reader in readers:
        found = _contestants(runner, library, reader, stops)
        if isinstance(found, Outcome):
            problems[reader.key] = found
        else:
            contestants += found
    section.outcomes = problems | runner.measure(contestants)
    for reader in readers:
        _add(section, library, reader, stops)
    slowest = [section.outcomes[_key("ours-raw", stop)].median(lambda r: r["wall_s"]) for stop in stops[1:]]
    slowest_s = max(value for value in slowest if value is not None)
    section.goals.append(Goal.most("ours at most 0.07 s to the first batch, anywhere (seconds)", slowest_s, 0.07))
    section.goals.append(Goal.least("ours: the share of exact batches", section.checks["ours-raw"]["exact"], 1.0))
    section.remarks += [
        "A new process has imported its libraries; the time includes opening the dataset and loading the state, and "
        "ends with the first batch of 32. Cold is the start of an epoch without a state.",
        "Exact: the batch is the one that an undisturbed epoch has at that place, in all rounds. webdataset has no "
        "state: what was consumed is read again and dropped. HF's IterableDataset does not keep its shuffle buffer.",
    ]
    return section


def _key(key: str, stop: int) -> str:
    return f"{key}@{stop}"


def _contestants(runner: Runner, library: Library, reader: Reader, stops: Sequence[int]) -> list[Contestant] | Outcome:
    if missing := runner.missing(reader.needs):
        return Outcome(reader.label, problem=f"not installed ({', '.join(missing)})")
    try:
        found = [(stop, library.resume(reader, stop)) for stop in dict.fromkeys(stops)]
    except BenchError as error:
        if not reader.needs:
            raise
        return Outcome(reader.label, problem=str(error))
    return [Contestant(_key(c.key, stop), f"{c.label} at {stop}", c.worker, c.arguments, c.needs) for stop, c in found]


def _add(section: Section, library: Library, reader: Reader, stops: Sequence[int]) -> None:
    if reader.key in section.outcomes:
        section.add(section.outcomes[reader.key])
        return
    outcomes = [section.outcomes[_key(reader.key, stop)] for stop in stops]
    failed = next((outcome for outcome in outcomes if outcome.problem), None)
    if failed is not None:
        section.add(Outcome(reader.label, problem=failed.problem))
        return
    exact = [
        library.is_next(reader, stop, result)
        for stop, outcome in zip(stops[1:], outcomes[1:], strict=True)
        for result in outcome.results
    ]
    section.checks[reader.key] = {"exact": sum(exact) / len(exact), "resumes": len(exact)}
    times: list[Cell] = []
    for outcome in outcomes:
        seconds = outcome.median(lambda result: result["wall_s"])
        empty = any(result["batch"] is None for result in outcome.results)
        times.append("no batch" if empty else None if seconds is None else seconds * 1e3)
    word = "yes" if all(exact) else "no" if not any(exact) else f"{sum(exact)} of {len(exact)}"
    section.add(Outcome(reader.label, results=outcomes[0].results), *times, word)
