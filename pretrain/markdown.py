"""Parts of Markdown files that commands write: what stands between two markers is theirs, the rest is people's."""

from __future__ import annotations

from pathlib import Path

from pretrain.errors import RunError
from pretrain.files import write_atomic


def write_section(path: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->`` in the file.

    Raises RunError if the file cannot be read or written, or does not have both markers once.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    try:
        old = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); give an existing Markdown file.") from error
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise RunError(f"{path} does not have the lines {begin} and {end} once each, in this order; add them to it.")
    before, rest = old.split(begin)
    try:
        write_atomic(path, f"{before}{begin}\n\n{text.strip()}\n\n{end}{rest.split(end)[1]}")
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); check its permissions.") from error
