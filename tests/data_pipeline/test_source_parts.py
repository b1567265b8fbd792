"""Parts joined are the whole; budgets and weights take what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipeline.config import BuildConfig
from data_pipeline.errors import DataError
from data_pipeline.sources import Part, SourceConfig, plan_parts, read_documents, read_part


def joined(source, target):
    parts = plan_parts(source, target)
    assert parts == plan_parts(source, target)
    copies = [Part.model_validate_json(part.model_dump_json()) for part in parts]
    return [document for part in copies for document in read_part(part)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("parts")


LINES = st.lists(st.one_of(st.just(""), st.text(max_size=40)), max_size=30)


@given(texts=LINES, ending=st.sampled_from(["", "\n", "\n\n"]), target=st.integers(1, 400))
def test_json_lines(folder, texts, ending, target):
    path = folder / "a.jsonl"
    lines = [json.dumps({"text": text}) if text else "" for text in texts]
    path.write_text("\n".join(lines) + ending, encoding="utf-8")
    whole = list(read_documents(str(path)))
    assert [d.text for d in whole] == [text for text in texts if text]
    assert len({d.id for d in whole}) == len(whole)
    assert joined(str(path), target) == whole


PIECES = st.lists(
    st.tuples(
        st.sampled_from(["word ", "x", "é", "中", "\n", "\n\n", "\r\n\r\n", " \n\t\n", "\n" * 5000]),
        st.integers(1, 90_000),
    ),
    min_size=1,
    max_size=12,
)


@given(pieces=PIECES, target=st.sampled_from([1, 16 * 1024, 50_000, 262_144, 1_000_000]))
def test_large_text(folder, pieces, target):
    path = folder / "a.txt"
    text = "".join(piece * min(count, 400_000 // len(piece)) for piece, count in pieces)
    path.write_bytes(text.encode())
    whole = list(read_documents(str(path)))
    # Pieces of nothing but white space are left out; nothing else is.
    assert "".join("".join(d.text.split()) for d in whole) == "".join(text.split())
    assert max((len(d.text.encode()) for d in whole), default=0) <= 300 * 1024
    assert joined(str(path), target) == whole


ARTICLE_LINES = st.lists(
    st.sampled_from([" = Title = ", " = = Sub = = ", " ", "", " = 0 @.@ 5 = ", " Words here . "]), max_size=60
)


@given(lines=ARTICLE_LINES, target=st.integers(1, 300))
def test_wikitext(folder, lines, target):
    path = folder / "wiki.train.raw"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    whole = list(read_documents(str(path)))
    assert "".join("".join(d.text.split()) for d in whole) == "".join("".join(lines).split())
    assert joined(str(path), target) == whole


@given(
    count=st.one_of(st.none(), st.integers(1, 60)),
    size=st.one_of(st.none(), st.integers(1, 3000)),
    weight=st.sampled_from([0.2, 0.5, 1.0]),
)
def test_budgets_and_weights(folder, count, size, weight):
    path = folder / "b.jsonl"
    path.write_text("".join(json.dumps({"text": "é" * i + str(i)}) + "\n" for i in range(50)), encoding="utf-8")
    source = SourceConfig(spec=str(path), max_documents=count, max_bytes=size, weight=weight)
    found = list(read_documents(source))
    everything = list(read_documents(SourceConfig(spec=str(path), weight=weight)))
    assert found == everything[: len(found)]
    used = sum(len(d.text.encode()) for d in found)
    assert len(found) <= (count or 50) and used <= (size or 10**9)
    if len(found) < len(everything):
        following = len(everything[len(found)].text.encode())
        assert len(found) == count or (size is not None and used + following > size)
    assert joined(source, 100) == found


def test_weight_is_a_share_by_content(folder):
    one, other = folder / "c.jsonl", folder / "d.jsonl"
    lines = [json.dumps({"text": f"document {i}"}) + "\n" for i in range(4000)]
    one.write_text("".join(lines), encoding="utf-8")
    other.write_text("".join(reversed(lines)), encoding="utf-8")
    kept = [{d.text for d in read_documents(SourceConfig(spec=str(p), weight=0.25))} for p in (one, other)]
    assert kept[0] == kept[1]
    assert 890 < len(kept[0]) < 1110  # four standard deviations


def test_errors_in_a_later_part_name_the_line_of_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' * 500 + "{bad\n", encoding="utf-8")
    last = plan_parts(str(path), 1000)[-1]
    assert last.start > 0
    with pytest.raises(DataError, match=r"a\.jsonl:501 is not valid JSON"):
        list(read_part(last))
    path.write_text('{"text": "good"}\n' * 480, encoding="utf-8")
    with pytest.raises(DataError, match="fewer than when the work was planned"):
        list(read_part(last))
    with pytest.raises(DataError, match="at least 1"):
        plan_parts(str(path), 0)


def test_build_config_takes_specs_and_settings(tmp_path):
    config = BuildConfig(sources=["b.txt", {"spec": "a.txt", "weight": 0.5}, "b.txt"], output=tmp_path)
    assert [source.setting() for source in config.canonical_sources()] == [{"spec": "a.txt", "weight": 0.5}, "b.txt"]
    assert BuildConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match="named twice with different settings"):
        BuildConfig(sources=["a.txt", {"spec": "a.txt", "weight": 0.5}], output=tmp_path)
