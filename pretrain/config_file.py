"""Reads a run's configuration from YAML and overrides, and says in one sentence what is wrong with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from model.errors import ModelError
from model.presets import preset
from pretrain.config import RunConfig
from pretrain.errors import RunError

Tree = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)


def load(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The run that the YAML file at `path` and the `key.sub=value` overrides describe.

    Raises RunError with one sentence: an unreadable file, an unknown key (the nearest one is named) or a
    value that breaks a rule.
    """
    tree = _read(path)
    for override in overrides:
        apply_override(tree, override)
    tree.setdefault("run_dir", str(Path("runs") / path.stem))
    return parse(tree, str(path))


def parse(tree: Tree, origin: str) -> RunConfig:
    """The validated run of a plain tree; `origin` names it in messages. Raises RunError."""
    tree = dict(tree)
    if isinstance(tree.get("model"), Mapping) and "preset" in tree["model"]:
        tree["model"] = _with_preset(dict(tree["model"]), origin)
    return validated(RunConfig, tree, origin)


def validated(kind: type[Model], tree: Tree, origin: str) -> Model:
    """The tree as a `kind`. Raises RunError that names each wrong key and, for an unknown one, the nearest."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        problems = [_problem(kind, item) for item in error.errors()]
        raise RunError(f"{origin}: {'; '.join(problems)}.") from None


def dump(config: RunConfig) -> str:
    """The whole tree as YAML: every value, defaults included; `parse` gives the same run back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read(path: Path, depth: int = 0) -> Tree:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise RunError(f"Cannot read the config {path}: {error.strerror}; give the path of a YAML file.") from None
    except ValueError as error:  # not UTF-8, or a date that is none
        raise RunError(
            f"{path} is not a YAML file in UTF-8 ({error}); mend it, or put quotes around the value."
        ) from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise RunError(f"{path}{line} is not valid YAML: {getattr(error, 'problem', error)}.") from None
    if not isinstance(tree, dict):
        raise RunError(f"{path} must hold a mapping of sections such as `model:` and `data:`.")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if depth:
        raise RunError(f"{path} extends {parent}, but a parent may not extend again; merge the two files.")
    return merge(_read(path.parent / str(parent), depth + 1), tree)


def merge(base: Tree, top: Tree) -> Tree:
    """`top` over `base`, section by section; a new preset replaces the parent's whole model."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        replaces = key == "model" and isinstance(value, dict) and "preset" in value
        both = isinstance(old, dict) and isinstance(value, dict) and not replaces
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def apply_override(tree: Tree, override: str) -> None:
    """Set the value of a `key.sub=value` in the tree. Raises RunError for another form."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RunError(f"The override '{override}' must look like key.sub=value.")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise RunError(f"The value in '{override}' is not valid YAML; put quotes around it.") from None
    *parents, last = key.split(".")
    node = tree
    for name in parents:
        child = node.setdefault(name, {})
        if not isinstance(child, dict):
            raise RunError(f"The override '{override}' looks inside '{name}', which holds a plain value.")
        node = child
    node[last] = value


def _with_preset(section: Tree, origin: str) -> Tree:
    name = section.pop("preset")
    try:
        base = preset(str(name))
    except ModelError as error:
        raise RunError(f"{origin}: {error}") from None
    return merge(base.model_dump(), section)


def _problem(kind: type[BaseModel], item: Any) -> str:
    where = [str(part) for part in item["loc"]]
    key = ".".join(where) or "the config"
    if item["type"] == "extra_forbidden":
        known = _known_keys(kind, where[:-1])
        near = difflib.get_close_matches(where[-1], known, n=1, cutoff=0.0)
        prefix = ".".join([*where[:-1], ""])
        return f"unknown key '{key}', the nearest is '{prefix}{near[0]}'" if near else f"unknown key '{key}'"
    if item["type"] == "missing":
        return f"'{key}' is missing and has no default"
    message = str(item["msg"]).removeprefix("Value error, ").rstrip(".")
    return message if item["type"] == "value_error" else f"'{key}' is {item['input']!r}: {message}"


def _known_keys(kind: type[BaseModel], section: list[str]) -> list[str]:
    """The field names of the section of `kind` at this path."""
    for name in section:
        annotation = kind.model_fields[name].annotation if name in kind.model_fields else None
        options = [annotation, *get_args(annotation)]
        inner = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not inner:
            return []
        kind = inner[0]
    return list(kind.model_fields)
