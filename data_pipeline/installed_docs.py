"""The source ``installed-docs``: the documentation that comes with the installed Python packages.

Every machine that can run this project has some 20 MB of it: real English about programming, with markup and code
examples, and no download. It holds the docstrings of all modules in site-packages and the standard library, read with
:mod:`ast` (nothing is imported, so nothing is executed), the long descriptions in the packages' metadata, and the
``.rst``, ``.md`` and ``.txt`` files that they ship. What it contains depends on what is installed: numbers measured
on it compare runs on one machine, not machines.
"""

from __future__ import annotations

import ast
import gc
import importlib.metadata
import inspect
import os
import platform
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.documents import Document

NAME = "installed-docs"
#: A module with fewer characters of docstrings is left out.
SMALLEST_MODULE = 200
#: Larger text files are word lists, tables and change logs of machines, not documentation.
LARGEST_TEXT_FILE = 400_000
_SKIPPED_DIRECTORIES = frozenset(
    {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages", "licenses", "license_files"}
)
_TEXT_SUFFIXES = (".rst", ".md", ".txt")
#: Legal texts and machine-read lists among the text files, by the start of their lower-case name.
_SKIPPED_TEXTS = (
    "license", "licence", "copying", "notice", "authors", "record", "top_level", "entry_points", "sources",
    "requirements", "cmakelists", "vendor", "namespace_packages", "dependency_links", "tlds-", "grammar",
    "exceptions_to_skip", "apache",
)  # fmt: skip
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class ReadCounts:
    """What a pass over the installed packages met; `unparsable` modules are skipped."""

    modules: int = 0
    text_files: int = 0
    unparsable: int = 0


def installed_roots() -> list[Path]:
    """site-packages (pure and platform) and the standard library of the running interpreter, without repetition."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys(Path(paths[key]).resolve() for key in ("purelib", "platlib", "stdlib")))


def describe_installed_docs() -> list[list[Any]]:
    """Interpreter version and the sorted names and versions of all installed distributions."""
    found = {(d.name or "", d.version or "") for d in importlib.metadata.distributions()}
    return [["python", platform.python_version()], *(list(pair) for pair in sorted(found))]


def read_installed_docs(roots: Sequence[Path] | None = None, counts: ReadCounts | None = None) -> Iterator[Document]:
    """One document a module or text file, in the order of the roots and then of the sorted relative paths.

    Args:
        roots: directories to read; by default those of :func:`installed_roots`.
        counts: is filled while the iterator runs, if given.

    Ids are paths relative to the root, such as ``torch/nn/functional.py``. Test directories and legal texts are
    skipped; files that do not decode or parse are skipped and counted.
    """
    counts = counts if counts is not None else ReadCounts()
    for root in installed_roots() if roots is None else roots:
        for relative in _files(root):
            text = (
                _module_text(root, relative, counts) if relative.endswith(".py") else _file_text(root, relative, counts)
            )
            if text is not None:
                yield Document(relative, NAME, text)


def _files(root: Path) -> list[str]:
    found = []
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = [d for d in subdirectories if d not in _SKIPPED_DIRECTORIES]
        prefix = os.path.relpath(directory, root)
        for name in names:
            if name.endswith(".py") or name == "METADATA" or _is_documentation(name):
                found.append(name if prefix == "." else f"{prefix}/{name}".replace(os.sep, "/"))
    return sorted(found)


def _is_documentation(name: str) -> bool:
    lower = name.lower()
    return lower.endswith(_TEXT_SUFFIXES) and not lower.startswith(_SKIPPED_TEXTS)


def _read_bytes(root: Path, relative: str, counts: ReadCounts) -> bytes | None:
    try:
        return (root / relative).read_bytes()
    except OSError:
        # A dangling link or an unreadable file of somebody else's package is no reason to stop a build.
        counts.unparsable += 1
        return None


def _file_text(root: Path, relative: str, counts: ReadCounts) -> str | None:
    data = _read_bytes(root, relative, counts)
    if data is None or len(data) > LARGEST_TEXT_FILE:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        counts.unparsable += 1
        return None
    if relative.endswith("METADATA"):
        # Headers end at the first empty line; what follows is the long description.
        text = text.replace("\r\n", "\n").partition("\n\n")[2]
    if len(text.strip()) < SMALLEST_MODULE:
        return None
    counts.text_files += 1
    return text


def _module_text(root: Path, relative: str, counts: ReadCounts) -> str | None:
    data = _read_bytes(root, relative, counts)
    if data is None or (b'"""' not in data and b"'''" not in data):
        return None  # multi-line docstrings need triple quotes; this saves parsing a fifth of the files
    try:
        with _quiet_parser():
            tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        counts.unparsable += 1
        return None
    module = relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    sections = [f"{name}\n\n{text}" for name, text in _docstrings(tree, module)]
    body = "\n\n\n".join(sections)
    if len(body) < SMALLEST_MODULE:
        return None
    counts.modules += 1
    return body


@contextmanager
def _quiet_parser() -> Iterator[None]:
    """No SyntaxWarnings about other people's code, and no garbage collection in the middle of building a tree.

    Trees have millions of nodes and no cycles; collecting while they grow costs a third of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if enabled:
            gc.enable()


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """(qualified name, dedented docstring) of a module or definition and of all definitions in it, in source order."""
    if isinstance(node, (ast.Module, *_DEFINITIONS)):
        text = ast.get_docstring(node, clean=False)
        if text is not None and (text := inspect.cleandoc(text)):
            yield name, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _DEFINITIONS):
            yield from _docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, (ast.If, ast.Try)):
            yield from _docstrings(child, name)
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            yield from _added_docstrings(child.value)


def _added_docstrings(call: ast.Call) -> Iterator[tuple[str, str]]:
    """The text of calls like ``add_docstr(torch.abs, r'''...''')``, which give compiled functions their docstrings."""
    function = call.func
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if "doc" not in called or len(call.args) < 2:
        return
    for argument in call.args[1:]:
        for part in ast.walk(argument):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and "\n" in part.value:
                yield ast.unparse(call.args[0]).strip("'\""), inspect.cleandoc(part.value)
