"""Nothing that is read from a disk or a network runs code, and no shell is given a string."""

from __future__ import annotations

import ast

import pytest

from tests.arch.test_imports import ROOT, _files, _imports

FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
# Pickles that this run wrote itself, and whose every byte was checked against its manifest just before.
PICKLES_OF_OURS = {"pretrain/elastic.py": 2}


def _calls(path):
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def _name(call: ast.Call) -> str:
    return ast.unparse(call.func)


def _keyword(call: ast.Call, name: str):
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_runs_what_it_reads(path):
    assert not _imports(path) & FORBIDDEN_MODULES
    trusted = 0
    for call in _calls(path):
        name = _name(call)
        assert name not in {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}, name
        assert _keyword(call, "shell") in (None, "False"), f"{name} with a shell"
        assert _keyword(call, "allow_pickle") in (None, "False"), f"{name} with pickles"
        if name == "torch.load":
            weights_only = _keyword(call, "weights_only")
            assert weights_only in {"True", "False"}, "say weights_only"
            trusted += weights_only == "False"
        if name == "np.load":
            assert _keyword(call, "allow_pickle") == "False", "say allow_pickle=False"
    assert trusted == PICKLES_OF_OURS.get(str(path.relative_to(ROOT)), 0)
