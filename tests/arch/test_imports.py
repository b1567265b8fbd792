"""The house's one-way flow, read from the imports of every file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cluster", "pretrain", "model", "data_pipeline", "benchmarks")
# package → what it may import from this project; the composition root may import all of it
ALLOWED = {
    "model": {"model"},
    "data_pipeline": {"data_pipeline"},
    "pretrain": {"pretrain", "model", "data_pipeline"},
    "cluster": {"cluster"},
    "benchmarks": {"benchmarks", "pretrain", "model", "data_pipeline", "cluster"},
}
COMPOSITION_ROOT = (
    "pretrain/cli.py",
    "pretrain/cli_data.py",
    "pretrain/cli_bench.py",
    "pretrain/cli_cluster.py",
    "pretrain/cli_array.py",
    "pretrain/cli_status.py",
    "pretrain/cli_check.py",
    "pretrain/cli_hosts.py",
)
# library → the only places that may import it
OWNERS = {
    "deepspeed": ("pretrain/engine.py", "pretrain/elastic.py"),
    "webdataset": ("data_pipeline/", "benchmarks/data/peer_webdataset.py"),
    "sentencepiece": ("data_pipeline/", "benchmarks/data/peer_tokenize.py", "benchmarks/data/ours_tokenize.py"),
    "tiktoken": ("data_pipeline/",),
    "triton": ("model/kernels/",),
    "wandb": ("pretrain/loggers.py",),
}
LIGHT = (
    "pretrain/cli.py",
    "pretrain/array_config.py",
    "pretrain/cli_array.py",
    "pretrain/cli_bench.py",
    "pretrain/cli_cluster.py",
    "pretrain/cli_status.py",
    "pretrain/cli_check.py",
    "pretrain/cli_hosts.py",
    "pretrain/cluster_config.py",
    "pretrain/cli_data.py",
    "pretrain/cli_plan.py",
    "pretrain/config.py",
    "pretrain/errors.py",
    "cluster/slurm.py",
    "model/config.py",
)


def _files() -> list[Path]:
    return sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))


def _imports(path: Path, top_level_only: bool = False) -> set[str]:
    """The first names of all modules that the file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name their package"
            found.add((node.module or "").split(".")[0])
    return found


def test_there_is_something_to_check():
    assert len(_files()) > 30


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_flow_one_way(path):
    relative = path.relative_to(ROOT).as_posix()
    used = _imports(path)
    if relative not in COMPOSITION_ROOT:
        allowed = ALLOWED[relative.split("/")[0]]
        assert used & set(PACKAGES) <= allowed, f"{relative} imports {used & set(PACKAGES) - allowed}"
    for library, owners in OWNERS.items():
        assert library not in used or relative.startswith(owners), f"{relative} imports {library}"


@pytest.mark.parametrize("name", [n for n in LIGHT if (ROOT / n).exists()])
def test_light_files_import_no_heavy_library(name):
    assert not _imports(ROOT / name, top_level_only=True) & {
        "torch",
        "numpy",
        "deepspeed",
        "wandb",
        "matplotlib",
    }


def test_a_build_worker_starts_without_torch():
    # it costs seconds and hundreds of megabytes a worker; the webdataset library imports it
    code = "import sys, data_pipeline.build_worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_unsafe_calls(path):
    """No pickle, eval, exec or shell strings in our own code."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not _imports(path) & {"pickle", "marshal", "shelve"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", None)
            assert name not in {"eval", "exec"}, f"{path}:{node.lineno}"
            for keyword in node.keywords:
                shell = keyword.arg == "shell" and getattr(keyword.value, "value", True) is not False
                assert not shell, f"{path}:{node.lineno}: shell="


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes_stay_readable(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, "a file that no longer fits in a head"
    tree = ast.parse(text)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    for node in [*tree.body, *(member for c in classes for member in c.body)]:
        # what autograd.Function calls is described by its class
        private = getattr(node, "name", "_").startswith("_") or node.name in {"forward", "backward"}
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not private:
            assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name} has no docstring"
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{path}:{node.lineno} {node.name}"
