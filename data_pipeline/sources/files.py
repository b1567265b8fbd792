"""Which local files a source names, and which format each of them has."""

from __future__ import annotations

import glob
import re
from pathlib import Path, PurePosixPath

from data_pipeline.errors import DataError
from data_pipeline.sources.config import FormatName, SourceConfig
from data_pipeline.sources.streams import COMPRESSIONS, telling

_BY_SUFFIX: dict[str, FormatName] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".tar": "tar",
    ".tgz": "tar",
    ".txz": "tar",
    ".warc": "warc",
    ".wet": "warc",
}
#: Names that say more than their suffix.
_BY_NAME: tuple[tuple[re.Pattern[str], FormatName], ...] = (
    (re.compile(r"openwebtext.*\.tar(\.xz)?"), "openwebtext"),
    (re.compile(r"urlsf_subset.*\.xz"), "openwebtext"),
    (re.compile(r"wiki\.(train|valid|test)\.(raw|tokens)(\.(gz|zst|xz))?"), "wikitext"),
)


def expand(source: SourceConfig) -> list[tuple[str, FormatName]]:
    """The files of a path or glob, sorted, each with its format.

    Raises:
        DataError: a URL, a directory, no match, or a file whose format is unknown.
    """
    spec = source.spec
    if "://" in spec or spec.startswith("pipe:"):
        raise DataError(
            f"source {spec!r} is a URL, but local files are needed here (pha data build also reads http://, https:// "
            "and s3://): download it and give its path."
        )
    path = Path(spec).expanduser()
    if path.is_dir():
        raise DataError(
            f"source {spec!r} is a directory: name its files with a glob such as '{spec.rstrip('/')}/**/*.txt'."
        )
    if path.exists():
        paths = [path]
    else:
        found = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        paths = sorted(p for p in map(Path, found) if p.is_file())
    if not paths:
        raise DataError(
            f"source {spec!r} matches no file: give an existing path or glob, hf:NAME, or the name installed-docs."
        )
    return [(str(path), source.format or format_of(path)) for path in paths]


def format_of(path: Path | str) -> FormatName:
    """The format that a file's name (a path or URL) tells. Raises DataError where it tells none."""
    found = known_format(path)
    if found is None:
        raise DataError(
            f"{path} has an unknown extension: known are {', '.join(_BY_SUFFIX)}, each but .parquet also as "
            f"{', '.join(COMPRESSIONS)}; rename or convert the file, narrow the glob, or set the source's format."
        )
    return found


def known_format(path: Path | str) -> FormatName | None:
    """As :func:`format_of`, or None where the name tells no format."""
    name = PurePosixPath(telling(str(path))).name.lower()
    for pattern, known in _BY_NAME:
        if pattern.fullmatch(name):
            return known
    suffixes = Path(name).suffixes
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return _BY_SUFFIX.get(suffixes[-1]) if suffixes else None
