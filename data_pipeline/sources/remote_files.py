"""Files behind a URL as sources: one file of an HTTP(S) server, and the objects of an S3 bucket by key, glob or folder.

A remote file is copied whole to a temporary file before it is read: Parquet and the checks at the end of an archive
need all of it, and a connection that breaks is then repaired before a reader has given out half of a document. The
copy is made by range reads of bounded size, each with the checks and tries of :mod:`data_pipeline.remote`.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from data_pipeline.errors import DataError, Interrupted
from data_pipeline.remote import HttpTransport, RemoteStorage, RetryPolicy
from data_pipeline.s3 import Listed, S3Bucket
from data_pipeline.sources.config import FormatName, SourceConfig
from data_pipeline.sources.files import format_of, known_format
from data_pipeline.storage import DamagedData, check_url

log = logging.getLogger(__name__)

#: Bytes that one request asks for: they are in memory at once.
PIECE = 8 * 1024 * 1024
POLICY = RetryPolicy()
_URL = re.compile("(https?|s3)://", re.IGNORECASE)
_CONTROLS = re.compile("[\x00-\x1f\x7f]")
_WILD = re.compile(r"[*?\[]")
#: What decides how a bucket is reached.
_ENVIRONMENT = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
)


@dataclass(frozen=True)
class RemoteFile:
    """One file: its bytes, and the `version` (ETag or Last-Modified) that they have while the plan holds."""

    url: str
    kind: FormatName
    size: int
    version: str


def is_remote(spec: str) -> bool:
    """Whether a source or file is a URL that this module reads."""
    return _URL.match(spec) is not None


def expand(source: SourceConfig) -> list[RemoteFile]:
    """The files that a URL names, in the order in which the same files would be read from a directory.

    An S3 URL may hold ``*``, ``?``, ``[...]`` and ``**`` with the meaning that they have for local files, or end with
    ``/`` for all objects below it whose format is known (or all, if the source has a format).

    Raises:
        DataError: a URL with a secret in it, no match, a file whose format is unknown, or a server that cannot be
            reached or refuses.
    """
    # In an S3 source a question mark is a wildcard; everywhere else it begins a query.
    s3 = source.spec.lower().startswith("s3://")
    check_url(source.spec.replace("?", "*") if s3 else source.spec)
    base, name = _split(source.spec)
    if not s3:
        if not name or name.endswith("/") or "*" in name:
            raise DataError(f"source {source.spec!r} is no file, and HTTP cannot list a folder: name each file's URL.")
        return [_file(source, base, name, *_look(base, name))]
    if not (name == "" or name.endswith("/") or _WILD.search(name)):
        return [_file(source, base, name, *_look(base, name))]
    found = [
        _file(source, base, row.key, *((row.size, row.etag) if row.etag else _look(base, row.key)))
        for row in _matching(source, base, name)
    ]
    if not found:
        raise DataError(
            f"source {source.spec!r} matches no object of a known format: check it, end a folder with a slash, or set "
            "the source's format."
        )
    return sorted(found, key=lambda file: file.url.split("/"))


def versions_of(files: list[RemoteFile]) -> str:
    """One text that is another if any file was added, removed, reordered or replaced."""
    facts = json.dumps([[file.url, file.size, file.version] for file in files])
    return hashlib.sha256(facts.encode()).hexdigest()


@contextmanager
def local_copy(remote: RemoteFile, scratch: Path | None) -> Iterator[Path]:
    """A copy of the file, which is gone when the block ends, however it ends.

    Args:
        remote: what to copy, with the size and version that it must still have.
        scratch: an existing directory with room for it; None takes the system's for temporary files (TMPDIR).

    Raises:
        Interrupted: it cannot be read now, has been replaced since it was listed, or the disk is full.
        DataError: it is missing, or the server does not serve ranges.
    """
    base, name = _split(remote.url)
    with tempfile.NamedTemporaryFile(prefix="remote-", dir=scratch) as file:
        _check_version(remote, base, name)
        try:
            for offset in range(0, remote.size, PIECE):
                with _told():
                    file.write(_piece(remote, base, name, offset))
            file.flush()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Interrupted(
                f"the disk of {scratch or tempfile.gettempdir()} is full: {remote.url} ({remote.size} bytes) is copied "
                "there while it is read; free space and start again, or use fewer workers."
            ) from error
        _check_version(remote, base, name)
        if (written := os.stat(file.name).st_size) != remote.size:  # noqa: PTH116 - the name is a string
            raise Interrupted(f"the copy of {remote.url} has {written} of its {remote.size} bytes: start again.")
        yield Path(file.name)


def _piece(remote: RemoteFile, base: str, name: str, offset: int) -> bytes:
    storage = _storage(base)
    whole = storage.counters["whole_answers"]
    data = storage.read_range(name, offset, min(PIECE, remote.size - offset), total=remote.size)
    if storage.counters["whole_answers"] > whole and offset >= PIECE:  # not the first time
        raise DataError(
            f"{remote.url} comes from a server that sends whole files only, so that {remote.size} bytes would be sent "
            f"for every {PIECE} of them: download it and give its path, or use a server that knows ranges."
        )
    return data


def _check_version(remote: RemoteFile, base: str, name: str) -> None:
    if _look(base, name) != (remote.size, _plain(remote.version)):
        raise Interrupted(f"{remote.url} was replaced after the build had looked at it: start again.")


def _look(base: str, name: str) -> tuple[int, str]:
    with _told():
        size, version = _storage(base).look(name)
    return size, _plain(version)


def _plain(version: str) -> str:
    """Listings and answers may differ in the quotes of an ETag."""
    return version.strip('"')


def _file(source: SourceConfig, base: str, name: str, size: int, version: str) -> RemoteFile:
    url = f"{base}/{name}"
    kind = source.format or format_of(url)
    if not version:
        _warn_unversioned(base)
    return RemoteFile(url, kind, size, _plain(version))


@lru_cache(maxsize=64)
def _warn_unversioned(base: str) -> None:
    """Says so once a server and process."""
    log.warning(
        "%s tells neither ETag nor Last-Modified of its files: one that is replaced by another of the same size counts "
        "as unchanged; rename files that change.",
        base,
    )


def _split(url: str) -> tuple[str, str]:
    """Server or bucket, and the name in it: as it stands, since only the server knows what its parts mean."""
    scheme, _, rest = url.partition("://")
    place, _, name = rest.partition("/")
    return f"{scheme.lower()}://{place}", name


def _storage(base: str) -> RemoteStorage:
    return _opened(base, POLICY, tuple(map(os.environ.get, _ENVIRONMENT)))


@lru_cache(maxsize=8)
def _opened(base: str, policy: RetryPolicy, environment: tuple[str | None, ...]) -> RemoteStorage:
    """One a place, so that its connections serve all its files; another one if the environment changes."""
    if base.startswith("s3:"):
        return S3Bucket(base, policy, _check_name)
    return RemoteStorage(base, HttpTransport(base, policy), policy, _check_name)


def _check_name(name: str) -> str:
    """Any name but one that would break lines of logs; it is only ever sent to the server that was named."""
    if not name or _CONTROLS.search(name):
        raise DataError(f"{name!r} cannot be read: names must not be empty or hold control characters; rename it.")
    return name


@contextmanager
def _told() -> Iterator[None]:
    """What storage raises, told of a source. Only a missing file is sure to be missing again."""
    try:
        yield
    except DamagedData as error:
        raise DataError(f"{error}: check the URL, or start again if the file was being replaced.") from error
    except Interrupted:
        raise
    except DataError as error:
        raise Interrupted(str(error)) from error


def _matching(source: SourceConfig, base: str, pattern: str) -> list[Listed]:
    """The objects below a folder, or those that a glob matches; what only marks a folder is left out."""
    storage = _storage(base)
    assert isinstance(storage, S3Bucket)
    folder, wild = pattern == "" or pattern.endswith("/"), _WILD.search(pattern)
    with _told():
        listed = list(storage.objects(pattern[: wild.start()] if wild else pattern))
    if not folder and (literal := [row for row in listed if row.key == pattern]):
        return literal
    matching = glob_pattern(f"{pattern}**" if folder else pattern)
    found = [row for row in listed if matching.fullmatch(row.key)]
    return [row for row in found if known_format(row.key)] if folder and source.format is None else found


def glob_pattern(pattern: str) -> re.Pattern[str]:
    """A regular expression for a glob as :func:`glob.glob` takes it with ``recursive=True``.

    ``**`` stands for any number of folders, the others stay within one; a name that begins with a dot is matched by
    none of them.
    """
    parts = pattern.split("/")
    result = ""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            result += r"(?:(?!\.)[^/]+/)*" + (r"(?!\.)[^/]+" if last else "")
        else:
            result += (r"(?!\.)" if _WILD.match(part) else "") + _component(part) + ("" if last else "/")
    return re.compile(result, re.DOTALL)


def _component(part: str) -> str:
    result, at = "", 0
    while at < len(part):
        char, at = part[at], at + 1
        end = part.find("]", at + 1 + (part[at : at + 1] == "!")) if char == "[" else -1
        if end > 0:
            # what fnmatch makes of it, also of a range without members, less the end that it adds
            result += "(?!/)" + fnmatch.translate(part[at - 1 : end + 1]).removesuffix(r"\Z")
            at = end + 1
        else:
            result += {"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char))
    return result
