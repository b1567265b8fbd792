"""The data commands from end to end, on a small corpus: options in, JSON out."""

from __future__ import annotations

import io
import json
import shutil
import tarfile

import pytest
from typer.testing import CliRunner

from pretrain.cli import app
from tests.conftest import write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("cli") / "corpus.jsonl")


def pha(*command):
    result = CliRunner().invoke(app, ["data", *map(str, command), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def built(corpus, tmp_path_factory):
    """A build from a file, with an option that overrules it."""
    folder = tmp_path_factory.mktemp("cli-data")
    settings = {"sources": [str(corpus)], "output": str(folder / "d"), "tokenizer": {"vocab_size": 512}}
    (folder / "d.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    return folder, pha("build", folder / "d.yaml", "--validation", "0.05", "--test", "0")


def test_build_from_a_file(built, corpus):
    folder, stats = built
    assert set(stats["splits"]) == {"train", "validation"}
    again = pha("build", folder / "e", corpus, "--vocab", 512, "--validation", 0.05, "--test", 0, "--workers", 2)
    assert again["hash"] == stats["hash"]


def test_a_job_array(built, corpus, tmp_path):
    settings = {"sources": [str(corpus)], "output": str(tmp_path / "d"), "tokenizer": {"vocab_size": 512}}
    (tmp_path / "d.yaml").write_text(json.dumps(settings), encoding="utf-8")
    command = ("build", tmp_path / "d.yaml", "--validation", 0.05, "--test", 0)
    assert pha(*command, "--part", "2/2")["stage"] == "read"
    assert pha(*command, "--part", "1/2")["stage"] == "encoded"
    assert pha(*command, "--finish")["hash"] == built[1]["hash"]


def test_sources_with_settings_and_cleaning_from_a_file(corpus, tmp_path):
    source = {"spec": str(corpus), "max_documents": 200}
    settings = {"sources": [source], "output": str(tmp_path / "d"), "tokenizer": {"vocab_size": 512}}
    settings |= {"clean": {"preset": "web", "rules": {"min_words": 10}, "near_dedup": {}}}
    (tmp_path / "d.yaml").write_text(json.dumps(settings), encoding="utf-8")
    command = ("build", tmp_path / "d.yaml", "--validation", 0.05, "--test", 0, "--clean", "none", "--workers", 2)
    report = pha(*command)["report"]
    assert report["documents_read"] == 200
    assert set(report["rejected"]) >= {"min_words"}
    assert "curly_braces" not in report["rejected"], "the option overrules the file's preset"


def test_index_of_foreign_archives(built, tmp_path):
    folder, _ = built
    texts = [pha("show", folder / "d", number)["text"] for number in range(60)]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, text in enumerate(texts):
            data = json.dumps({"body": text}).encode()
            member = tarfile.TarInfo(f"{number:03d}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    options = ("--text-field", "body", "--vocab", 400, "--validation", 0.1, "--test", 0, "--workers", 2)
    stats = pha("index", tmp_path / "a.tar", tmp_path / "d", *options)
    assert stats["report"]["documents_kept"] == 60
    first = pha("show", tmp_path / "d", 0)
    assert first["text"] in texts


def test_show_append_merge_tokenizer(built, tmp_path):
    folder, stats = built
    document = pha("show", folder / "d", 5)
    assert pha("show", folder / "d", document["hash"])["text"] == document["text"]
    assert pha("tokenizer", folder / "d")["vocabulary"]["size"] == 512
    merged = pha("merge", tmp_path / "m", folder / "d", folder / "d")
    assert merged["splits"]["train"]["documents"] == stats["splits"]["train"]["documents"]
    text = "A text that nobody has written before, long enough to be kept by every rule of the house."
    (tmp_path / "new.jsonl").write_text(json.dumps({"text": text}), encoding="utf-8")
    copy = shutil.copytree(folder / "d", tmp_path / "copy")
    grown = pha("append", copy, tmp_path / "new.jsonl")
    assert grown["report"]["documents_kept"] == stats["report"]["documents_kept"] + 1


def test_tables_for_people(built):
    folder, _ = built
    for command in (("show", 0), ("tokenizer",), ("stats",), ("verify",)):
        name, *rest = map(str, command)
        result = CliRunner().invoke(app, ["data", name, str(folder / "d"), *rest])
        assert result.exit_code == 0, result.output
        assert str(folder / "d")[:20] in result.stdout.replace("\n", "")
