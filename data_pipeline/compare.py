"""Finds what stands twice in a corpus, by ranges of hashes, so that any number of processes can do most of it.

Near duplicates: each range leaves a sketch of its documents, and one process joins them. Decontamination: each range
leaves the n-grams of its held-out documents, one process unites them, and each range is searched for them. What is
found does not depend on the number of ranges.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipeline.build_plan import Plan, Task, finished_directory
from data_pipeline.config import CleanConfig, DecontaminateConfig, NearDedupConfig
from data_pipeline.decontaminate import DecontaminationReport, contaminated, held_out_ngrams
from data_pipeline.hashset import HashSet
from data_pipeline.near_dedup import NearDedupReport, join_sketches, sketch
from data_pipeline.overlaps import Overlaps, texts_of
from data_pipeline.progress import Advance
from data_pipeline.spool import distinct, split_name

#: Where the tasks of each stage leave their results; the last one stays for as long as the build works.
SKETCHES, NEAR, GRAMS, HELD_OUT, SEARCHED, FOUND = (
    ("sketched", "{:05d}"),
    ("overlaps", "near"),
    ("held-out", "{:05d}"),
    ("overlaps", "held-out"),
    ("searched", "{:05d}"),
    ("overlaps", "found"),
)
_SETS = ("near-duplicates", "contaminated")


def compare_stages(clean: CleanConfig, ranges: int) -> list[tuple[str, list[Task]]]:
    """Names and tasks of the stages that the settings ask for, before the last one, :func:`make_overlaps`."""
    stages: list[tuple[str, list[Task]]] = []
    if clean.near_dedup is not None:
        stages.append(("sketch", [["sketch", n, ranges] for n in range(ranges)]))
        stages.append(("join near duplicates", [["near", ranges]]))
    if clean.decontaminate is not None:
        stages.append(("read held-out text", [["grams", n, ranges] for n in range(ranges)]))
        stages.append(("unite held-out text", [["held-out", ranges]]))
        stages.append(("search for held-out text", [["search", n, ranges] for n in range(ranges)]))
    return stages


def place(plan: Plan, of: tuple[str, str], number: int = 0) -> Path:
    """Where one of the results lies, for example that of a range in SKETCHES."""
    return plan.result(of[0], of[1].format(number))


def sketch_range(plan: Plan, number: int, ranges: int, advance: Advance) -> None:
    """Sketch a range of documents. Raises OSError."""
    settings = _near_dedup(plan)
    with finished_directory(place(plan, SKETCHES, number)) as directory:
        documents = _counted(distinct(plan, number, ranges), advance)
        sketch(documents, directory, threshold=settings.threshold, permutations=settings.permutations)


def join_near(plan: Plan, ranges: int) -> None:
    """Find the near duplicates among all sketches. Raises OSError."""
    settings = _near_dedup(plan)
    with finished_directory(place(plan, NEAR)) as directory:
        sketches = [place(plan, SKETCHES, number) for number in range(ranges)]
        found = join_sketches(sketches, directory, threshold=settings.threshold, permutations=settings.permutations)
        Overlaps(near=found).save(directory)


def read_held_out(plan: Plan, number: int, ranges: int, advance: Advance) -> None:
    """Leave the n-grams of a range's held-out documents. Raises OSError."""
    with finished_directory(place(plan, GRAMS, number)) as directory:
        texts = (text for _, text in _part(plan, number, ranges, True, advance))
        np.save(directory / "ngrams.npy", held_out_ngrams(texts, _decontaminate(plan).ngram), allow_pickle=False)


def unite_held_out(plan: Plan, ranges: int) -> None:
    """All held-out n-grams, with those of the files. Raises DataError, OSError."""
    settings = _decontaminate(plan)
    with finished_directory(place(plan, HELD_OUT)) as directory:
        pieces = [np.load(place(plan, GRAMS, number) / "ngrams.npy", allow_pickle=False) for number in range(ranges)]
        pieces.append(held_out_ngrams(texts_of(settings.files, directory), settings.ngram))
        np.save(directory / "ngrams.npy", np.unique(np.concatenate(pieces)), allow_pickle=False)


def search_range(plan: Plan, number: int, ranges: int, advance: Advance) -> None:
    """Find the training documents of a range that share an n-gram with held-out text. Raises OSError."""
    ngrams = np.load(place(plan, HELD_OUT) / "ngrams.npy", mmap_mode="r", allow_pickle=False)
    with finished_directory(place(plan, SEARCHED, number)) as directory:
        documents = _part(plan, number, ranges, False, advance)
        found = contaminated(documents, ngrams, directory, n=_decontaminate(plan).ngram)
        Overlaps(contaminated=found).save(directory)


def make_overlaps(plan: Plan, ranges: int) -> None:
    """Put together what the stages have found, if there were any, and remove what they leave. Raises OSError."""
    target, clean = place(plan, FOUND), plan.config.clean
    if not target.exists():
        with finished_directory(target) as directory:
            near = _near(plan)
            if near is not None:
                shutil.copyfile(place(plan, NEAR) / _SETS[0], directory / _SETS[0])
            Overlaps(near, _searched(plan, ranges, directory) if clean.decontaminate is not None else None).save(
                directory
            )
    drop_comparisons(plan)


def drop_comparisons(plan: Plan) -> None:
    """Free the disk of what is needed only until all is found. Safe to call again."""
    for of in (SKETCHES, GRAMS, SEARCHED):
        shutil.rmtree(plan.directory / of[0], ignore_errors=True)
    for of in (NEAR, HELD_OUT):
        shutil.rmtree(place(plan, of), ignore_errors=True)


def overlaps_of(plan: Plan) -> Overlaps:
    """What :func:`make_overlaps` has put together. Raises OSError."""
    return Overlaps.open(place(plan, FOUND))


def _searched(plan: Plan, ranges: int, directory: Path) -> tuple[HashSet, DecontaminationReport]:
    report = DecontaminationReport()
    dropped: list[bytes] = []
    for number in range(ranges):
        found = Overlaps.open(place(plan, SEARCHED, number)).contaminated
        assert found is not None
        report.merge(found[1])
        dropped.extend(found[0])
    return HashSet.of(directory / _SETS[1], dropped), report


def _near(plan: Plan) -> tuple[HashSet, NearDedupReport] | None:
    return None if plan.config.clean.near_dedup is None else Overlaps.open(place(plan, NEAR)).near


def _part(plan: Plan, number: int, ranges: int, held_out: bool, advance: Advance) -> Iterator[tuple[bytes, str]]:
    """A range's documents that are held out, or are not, without near duplicates."""
    kept = Overlaps(_near(plan))
    for hash_, text in _counted(distinct(plan, number, ranges), advance):
        if (split_name(hash_, plan.config) != "train") == held_out and kept.reason(hash_) is None:
            yield hash_, text


def _counted(documents: Iterator[tuple[bytes, str]], advance: Advance) -> Iterator[tuple[bytes, str]]:
    for hash_, text in documents:
        advance(1, len(text))
        yield hash_, text


def _near_dedup(plan: Plan) -> NearDedupConfig:
    settings = plan.config.clean.near_dedup
    assert settings is not None
    return settings


def _decontaminate(plan: Plan) -> DecontaminateConfig:
    settings = plan.config.clean.decontaminate
    assert settings is not None
    return settings
