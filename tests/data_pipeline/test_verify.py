from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from data_pipeline.schema import Index, content_hash
from data_pipeline.verify import verify


def rewrite_index(copy, change):
    """Change index.json and make its hash fit again, as a forger or a bug would."""
    content = json.loads((copy / "index.json").read_text(encoding="utf-8"))
    change(content)
    index = Index.model_validate(content)
    content["hash"] = content_hash(index.dtype, index.tokenizer, dict(index.splits))
    (copy / "index.json").write_text(json.dumps(content), encoding="utf-8")


def rehash(copy, name):
    """Make index.json agree with the changed shard or table `name`."""
    files = {**{p.name: p for p in copy.iterdir()}, **{p.name: p for p in (copy / "index").iterdir()}}

    def walk(node):
        if isinstance(node, dict):
            if node.get("name") == name:
                node["sha256"] = hashlib.sha256(files[name].read_bytes()).hexdigest()
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    rewrite_index(copy, lambda content: walk(content["splits"]))


def edit_table(copy, name, change):
    path = copy / "index" / name
    table = np.load(path)
    change(table)
    np.save(path, table)
    rehash(copy, name)


def test_sound_dataset(built, dataset):
    report = verify(built)
    assert report.ok, report.problems
    splits = [dataset.split(name) for name in dataset.split_names]
    assert report.shards == sum(len(s.info.shards) for s in splits)
    assert report.blocks == sum(len(s.blocks) for s in splits)
    assert report.documents == sum(s.documents for s in splits) == 400
    assert report.tokens == sum(s.tokens for s in splits)
    assert report.documents_decoded > 100
    assert json.loads(json.dumps(report.as_dict()))["ok"] is True


def test_all_problems_are_listed(copy):
    (copy / "train-000001.tar").unlink()
    data = bytearray((copy / "train-000000.tar").read_bytes())
    data[700] ^= 1
    (copy / "train-000000.tar").write_bytes(data)
    (copy / "index" / "test.blocks.npy").unlink()
    (copy / "tokenizer.model").write_bytes(b"")
    problems = "\n".join(verify(copy).problems)
    for expected in (
        "train-000001.tar is missing",
        "train-000000.tar has another SHA-256",
        "train-000000.tar: block 0 is corrupt",
        "test.blocks.npy cannot be read",
        "tokenizer.model is not the file",
    ):
        assert expected in problems


def test_unreadable_index_is_the_only_problem(copy):
    (copy / "index.json").write_text("[]", encoding="utf-8")
    report = verify(copy)
    assert len(report.problems) == 1
    assert "index.json is damaged" in report.problems[0]
    assert verify(copy / "nowhere").problems[0].startswith(str(copy / "nowhere"))


@pytest.mark.parametrize("position", [5, 130, 600, -1, -600])
def test_any_flipped_bit_of_a_shard_is_found(copy, position):
    path = copy / "validation-000000.tar"
    data = bytearray(path.read_bytes())
    data[position] ^= 16
    path.write_bytes(data)
    assert any("validation-000000.tar has another SHA-256" in p for p in verify(copy).problems)


def test_tar_without_end_blocks_is_found_even_if_its_hash_fits(copy):
    path = copy / "validation-000000.tar"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"x")
    rehash(copy, path.name)
    assert any("does not end with the two zero blocks" in p for p in verify(copy).problems)


def test_damaged_tar_header_is_found_even_if_its_hash_fits(copy):
    path = copy / "validation-000000.tar"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    rehash(copy, path.name)
    assert any("are not those of the blocks table" in p for p in verify(copy).problems)


def test_edited_index_is_found(copy):
    text = (copy / "index.json").read_text(encoding="utf-8")
    content = json.loads(text)
    content["splits"]["train"]["words"] += 1
    (copy / "index.json").write_text(json.dumps(content), encoding="utf-8")
    assert any("its hash does not fit" in p for p in verify(copy).problems)


def test_wrong_totals_are_found_even_if_the_hash_fits(copy):
    def change(content):
        content["splits"]["train"]["tokens"] += 1
        content["splits"]["test"]["bytes"] -= 1

    rewrite_index(copy, change)
    problems = "\n".join(verify(copy).problems)
    assert "train: the blocks hold" in problems
    assert "test: the text has" in problems


def test_wrong_document_rows_are_found_even_if_the_hash_fits(copy):
    def shift(table):
        table["offset"][1] += 1

    def other_text(table):
        table["hash"][0] ^= 1

    edit_table(copy, "train.documents.npy", shift)
    edit_table(copy, "test.documents.npy", other_text)
    problems = "\n".join(verify(copy).problems)
    assert "are not where the documents table says" in problems
    assert "test: document 0 decodes to another text" in problems
