"""`pha bench architectures`: one real run in the smallest sizes, and its tables."""

from __future__ import annotations

import json

import pytest

from benchmarks.architectures.contestants import DEFAULT, Contestant
from benchmarks.architectures.report import Report
from model.architectures import ARCHITECTURES
from model.presets import preset
from pretrain.probes.models import resolve
from tests.e2e.runs import pha


def test_every_architecture_is_compared_and_is_a_probe():
    contestants = [Contestant(name) for name in DEFAULT]
    assert {preset(name.partition(":")[0]).architecture for name in DEFAULT} == set(ARCHITECTURES)
    assert len({contestant.folder for contestant in contestants}) == len(DEFAULT)
    for contestant in contestants:
        assert resolve(contestant.probe, [], 32, 2, 64).d_model == 32
    variant = Contestant("pha-tiny:gss.kind=ssd,mixing=mean")
    assert variant.overrides == ["model.preset=pha-tiny", "model.gss.kind=ssd", "model.mixing=mean"]
    assert variant.probe == "pha:gss.kind=ssd,mixing=mean"


@pytest.fixture(scope="module")
def page(tiny_dataset, tmp_path_factory):
    """A page with the tables of one run, and the same figures as JSON."""
    folder = tmp_path_factory.mktemp("bench")
    page = folder / "page.md"
    page.write_text("<!-- pha bench architectures: begin -->\n<!-- pha bench architectures: end -->\n")
    sizes = ("--length", "32", "--tokens", "64", "--steps", "3", "--new", "4", "--recall-steps", "2")
    paths = ("--data", str(tiny_dataset), "--work", str(folder), "--write", str(page))
    done = pha("bench", "architectures", "pha-nano:gss.kind=ssd", *sizes, *paths, "--json")
    assert done.returncode == 0, done.stderr
    return page.read_text(encoding="utf-8"), json.loads(done.stdout)


def test_figures_of_a_real_run(page):
    (figures,) = page[1]["models"]
    assert figures["parameters"] > 20_000
    (training,), (decoding,) = figures["trainings"], figures["decodings"]
    assert len(training["losses"]) == 3
    assert 0 < training["validation"] < 10
    assert training["tokens_per_s"] > 0
    assert decoding["decode_tokens_per_s"] > 0
    # Keys and values of 36 tokens, the states and the last inputs of the convolution: something, and not much.
    assert 1_000 < decoding["cache_bytes"] < 1_000_000
    assert min(training["peak_memory"], decoding["peak_memory"]) > 50e6
    assert figures["exactness"]["documents"] > 1
    assert 0 < figures["exactness"]["logits"] < 1e-4
    assert 0 < figures["exactness"]["gradients"] < 1e-3
    assert 0 <= figures["recall"]["accuracy"]["32"] <= 1


def test_the_page_has_the_tables(page):
    text = page[0]
    for title in ("Size, exactness, recall and loss", "Training, 64 tokens a step", "Decoding one row"):
        assert title in text
    assert text.count("| pha-nano:gss.kind=ssd |") == 3


def test_bad_input_is_one_sentence(tmp_path, tiny_dataset):
    uneven = pha("bench", "architectures", "--data", str(tiny_dataset), "--length", "48", "--tokens", "64")
    assert uneven.returncode == 2
    assert uneven.stderr.count("\n") == 1
    assert "48 does not divide a step of 64" in uneven.stderr
    unknown = pha("bench", "architectures", "pha-huge", "--data", str(tiny_dataset))
    assert unknown.returncode == 2
    assert "pha-huge" in unknown.stderr


def test_a_report_without_recall_says_nothing_of_it():
    report = Report((512,), 8192, 64, "unused", "2026-01-01", "pha bench architectures", {}, [])
    assert report.as_dict()["models"] == []
