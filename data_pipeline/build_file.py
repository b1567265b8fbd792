"""What a user asks to be built: a YAML file, or a directory and sources, with options that overrule either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import DataError

#: What the command line means where nothing is said: OpenWebText's customary splits and vocabulary.
_COMMAND_DEFAULTS = {"tokenizer": {"vocab_size": 32_000}, "validation_fraction": 0.005, "test_fraction": 0.005}


def build_settings(target: Path, sources: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a BuildConfig, not yet validated.

    Args:
        target: a ``.yaml`` or ``.yml`` file if no sources are given; else the output directory.
        sources: what to read.
        options: values that overrule the file's, by key and section; None stands for "not said".

    Raises:
        DataError: the file cannot be read, is not YAML or holds no mapping; or there are no sources.
    """
    if sources:
        tree: dict[str, Any] = {**_COMMAND_DEFAULTS, "output": str(target), "sources": list(sources)}
    elif target.suffix in (".yaml", ".yml"):
        tree = _read(target)
    else:
        raise DataError(f"{target} is no .yaml file and no sources are named: give a build's file, or name sources.")
    return _overruled(tree, options)


def share(text: str) -> tuple[int, int]:
    """``I/N`` as two numbers. Raises DataError."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal()):
        raise DataError(f"--part {text} is no share: write it as I/N, for example 3/8.")
    return int(part), int(parts)


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): give an existing YAML file.") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not valid YAML ({' '.join(str(error).split())}): correct it.") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path} holds no settings: it must be a mapping with `sources:` and `output:`.")
    return tree


def _overruled(tree: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(tree)
    for key, value in options.items():
        if isinstance(value, Mapping):
            section = result.get(key)
            inner = _overruled(section if isinstance(section, Mapping) else {}, value)
            if inner:
                result[key] = inner
        elif value is not None:
            result[key] = value
    return result
