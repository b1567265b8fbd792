"""Parts of Markdown files that commands write: what stands between two markers is theirs, the rest is people's."""

from __future__ import annotations

from pathlib import Path

from pretrain.errors import RunError
from pretrain.files import write_atomic


def check_section(path: Path, name: str) -> None:
    """Make sure that :func:`write_section` can write there, before what is to be written is measured.

    Raises RunError if the file cannot be read, or does not have both markers once.
    """
    _split(path, name)


def write_section(path: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->`` in the file.

    Raises RunError if the file cannot be read or written, or does not have both markers once.
    """
    before, after = _split(path, name)
    try:
        write_atomic(path, f"{before}\n\n{text.strip()}\n\n{after}")
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); check its permissions.") from error


def _split(path: Path, name: str) -> tuple[str, str]:
    """The file up to the first marker and from the second one on, each with its marker."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); give an existing Markdown file.") from error
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise RunError(f"{path} does not have the lines {begin} and {end} once each, in this order; add them to it.")
    return text[: text.index(begin) + len(begin)], text[text.index(end) :]
