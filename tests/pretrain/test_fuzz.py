"""Files that nobody meant: clear errors only, whatever is in them."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from pretrain import config_file
from pretrain.checkpoint import MANIFEST, MARKER, STATE, Checkpoint, CheckpointStore
from pretrain.errors import RunError
from pretrain.files import sha256
from tests.pretrain.test_checkpoint import save

quick = settings(
    max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

KEYS = [
    "model",
    "data",
    "train",
    "optim",
    "steps",
    "path",
    "preset",
    "seq_len",
    "guards",
    "window",
    "schedule",
    "__x__",
]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=12), st.sampled_from(KEYS)
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)),
    max_leaves=12,
)


@quick
@given(TREES)
def test_a_config_of_any_tree_is_a_config_or_one_sentence(tmp_path, tree):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    try:
        config_file.load(path)
    except RunError as error:
        assert "Traceback" not in str(error)


@quick
@given(st.binary(max_size=200))
def test_a_config_of_any_bytes_is_one_sentence(tmp_path, data):
    path = tmp_path / "run.yaml"
    path.write_bytes(data)
    with pytest.raises(RunError):
        config_file.load(path)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch pwned']",
        "model: !!python/name:os.system",
        "a: &a [*a]",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nrun_dir: *c",
    ],
)
def test_a_config_runs_no_code_and_holds_no_bomb(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(RunError):
        config_file.load(tmp_path / "run.yaml")
    assert not (tmp_path / "pwned").exists()


@quick
@given(st.one_of(TREES, st.dictionaries(st.text(max_size=20), TREES, max_size=4)), st.booleans())
def test_a_manifest_of_any_tree_is_a_problem_and_no_crash(tmp_path_factory, tree, marked):
    store = CheckpointStore(tmp_path_factory.mktemp("fuzz"))
    checkpoint = save(store, 10)
    (checkpoint.path / MANIFEST).write_text(json.dumps(tree))
    if marked:  # by someone who can compute hashes too
        (checkpoint.path / MARKER).write_text(sha256(checkpoint.path / MANIFEST) + "\n")
    assert checkpoint.problems()


@quick
@given(st.one_of(TREES.map(json.dumps), st.text(max_size=60)))
def test_a_state_of_any_text_is_one_sentence(tmp_path_factory, text):
    checkpoint = save(CheckpointStore(tmp_path_factory.mktemp("fuzz")), 10)
    (checkpoint.path / STATE).write_text(text)
    with pytest.raises(RunError):
        Checkpoint(checkpoint.path).info()


@quick
@given(st.one_of(TREES.map(json.dumps), st.text(max_size=60)))
def test_an_index_of_any_text_is_one_sentence(tmp_path, text):
    (tmp_path / "index.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError):
        Dataset.open(tmp_path)
