"""The probes' labels are right and not given away, and one command trains, scores and draws them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from model import architectures
from pretrain.cli import app
from pretrain.errors import RunError
from pretrain.probes import models
from pretrain.probes.tasks import TASKS, find, mqar, phonebook, selective_copy
from pretrain.probes.train import Settings, score

IGNORE = -100


def rows(name, count=50, length=None, seed=0):
    task = TASKS[name]
    return task.draw(np.random.default_rng(seed), count, length or task.lengths[0])


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_whole_and_follow_from_the_seed(name):
    task = TASKS[name]
    for length in {*task.lengths, *task.test_lengths}:
        tokens, labels = rows(name, 20, length)
        assert tokens.shape == labels.shape == (20, length)
        assert tokens.dtype == labels.dtype == np.int64
        assert tokens.min() >= 0 and tokens.max() < task.vocab
        asked = labels[labels != IGNORE]
        assert len(asked) and asked.min() >= 0 and asked.max() < task.vocab
        again, other = rows(name, 20, length), rows(name, 20, length, seed=1)
        assert np.array_equal(tokens, again[0]) and np.array_equal(labels, again[1])
        assert not np.array_equal(tokens, other[0])
    assert min(task.test_lengths) >= min(task.lengths)


@pytest.mark.parametrize("name", TASKS)
def test_the_test_is_drawn_apart_from_the_training(name):
    task = TASKS[name]
    training = {row.tobytes() for row in task.draw(np.random.default_rng((0, 0)), 500, max(task.lengths))[0]}
    test = task.test_rows(np.random.default_rng((1, 0)), 200, max(task.lengths))[0]
    assert not training & {row.tobytes() for row in test}


def test_a_test_beyond_the_training_asks_only_there():
    for name in ("parity", "modular"):
        task = TASKS[name]
        longest = max(task.lengths)
        _, labels = task.test_rows(np.random.default_rng(0), 5, max(task.test_lengths))
        assert (labels[:, :longest] == IGNORE).all() and (labels[:, longest:] != IGNORE).any()
        assert (task.test_rows(np.random.default_rng(0), 5, longest)[1] != IGNORE).any()


def test_mqar_asks_each_key_once_for_its_value():
    tokens, labels = rows("mqar", length=64)
    early = 0
    for row, wanted in zip(tokens, labels, strict=True):
        book = dict(zip(row[:16:2].tolist(), row[1:16:2].tolist(), strict=True))
        assert len(book) == len(set(book.values())) == 8
        assert all(1 <= key < 32 <= value < 64 for key, value in book.items())
        places = np.flatnonzero(wanted != IGNORE)
        assert (places >= 16).all() and (places % 2 == 0).all()
        assert sorted(row[places].tolist()) == sorted(book)
        assert [book[key] for key in row[places].tolist()] == wanted[places].tolist()
        assert (row[16:][wanted[16:] == IGNORE] == 0).all(), "no value follows its query"
        early += int((places < 32).sum())
    assert early / (8 * len(tokens)) > 0.4, "short distances are likelier"


def test_selective_copy_asks_the_data_in_order():
    for row, wanted in zip(*rows("selective_copy"), strict=True):
        data = row[:56][row[:56] != 0]
        assert len(data) == 8 and (data >= 2).all()
        assert (row[56:] == 1).all() and (wanted[:56] == IGNORE).all()
        assert np.array_equal(wanted[56:], data)


def test_induction_asks_what_followed_the_mark():
    for row, wanted in zip(*rows("induction", 300), strict=True):
        first, last = np.flatnonzero(row == 0)
        assert last == len(row) - 1 and first < last - 1
        assert (wanted[:-1] == IGNORE).all() and wanted[-1] == row[first + 1]


@pytest.mark.parametrize(("name", "entries"), [("phonebook", 15), ("passkey", 1)])
def test_a_number_is_asked_digit_by_digit(name, entries):
    depths = set()
    for row, wanted in zip(*rows(name, 200), strict=True):
        names = np.flatnonzero(row > 10)
        assert len(names) == entries + 1 and len(set(row[names[:-1]].tolist())) == entries
        book = {int(row[place]): row[place + 1 : place + 4].tolist() for place in names[:-1]}
        assert all(1 <= digit <= 10 for number in book.values() for digit in number)
        assert names[-1] == len(row) - 3 and (wanted[:-3] == IGNORE).all()
        assert wanted[-3:].tolist() == book[int(row[-3])]
        assert row[-2:].tolist() == wanted[-3:-1].tolist(), "each digit is an input only after it was asked"
        depths.add(int(names[0]))
    assert len(depths) == 1 if name == "phonebook" else len(depths) > 40


def test_state_tracking_counts_on():
    for row, wanted in zip(*rows("parity", length=40), strict=True):
        assert wanted.tolist() == [sum(row[: i + 1]) % 2 for i in range(40)]
    for row, wanted in zip(*rows("modular", length=15), strict=True):
        value = int(row[0])
        assert wanted[0] == value and (wanted[1::2] == IGNORE).all()
        for place in range(2, 15, 2):
            value = eval(f"{value} {'+-*'[row[place - 1] - 5]} {row[place]}") % 5
            assert wanted[place] == value


def test_what_does_not_fit_is_one_sentence():
    generator = np.random.default_rng(0)
    for wrong, words in (
        (lambda: find("mqarr"), "the probes are mqar"),
        (lambda: mqar(16, 9), "more keys"),
        (lambda: mqar(64, 8)(generator, 1, 31), "at least 32"),
        (lambda: selective_copy(16, 8)(generator, 1, 15), "at least 16"),
        (lambda: phonebook(3, 3, None)(generator, 1, 63), "there are 3 names"),
        (lambda: models.resolve("mamba3", (), 32, 2, 16), "no architecture or preset called 'mamba3'"),
        (lambda: models.resolve("mamba2:ssd.stat=3", (), 32, 2, 16), "the nearest is 'ssd.state'"),
    ):
        with pytest.raises(RunError, match=words):
            wrong()


def test_all_models_have_one_width_and_depth():
    for spec in ("pha", "transformer", "mamba2", "taipan", "pha-tiny", "taipan-nano"):
        config = models.resolve(spec, ("model.norm_eps=1e-5",), 48, 3, 20)
        assert (config.d_model, config.n_layers, config.vocab_size, config.norm_eps) == (48, 3, 20, 1e-5)
        assert config.embedding_init_std == pytest.approx(48**-0.5) and config.embedding_scale == "none"
    assert architectures.layers(models.resolve("taipan", (), 48, 3, 20))[-1].parts[0] == "selective"
    own = models.resolve("pha:attention.window=4,gss.kind=ssd", ("attention.window=9",), 32, 2, 20)
    assert (own.attention.window, own.gss.kind) == (4, "ssd")


def test_a_probe_is_learned_and_repeats_itself():
    config = models.resolve("mamba2", (), 32, 2, TASKS["induction"].vocab)
    settings = Settings(steps=3, batch=8, rates=(1e-3, 1e-2), seeds=(0, 1), test_rows=16)
    lines: list[str] = []
    first = score("mamba2", config, TASKS["induction"], settings, lines.append)
    second = score("mamba2", config, TASKS["induction"], settings)
    assert first.accuracy == second.accuracy and first.by_rate == second.by_rate
    assert len(lines) == 4 and set(first.by_rate) == {1e-3, 1e-2} and set(first.accuracy) == {64, 256}
    easy = models.resolve("mamba2", (), 32, 1, 2)
    short = score("mamba2", easy, TASKS["parity"], Settings(steps=60, batch=32, rates=(1e-2,), test_rows=32))
    assert short.accuracy[40] > 0.52, "the first places of a row are easy"


def test_the_command_prints_and_draws(tmp_path):
    picture = tmp_path / "plots" / "probes.png"
    options = ["--task", "parity", "--task", "mqar", "--width", "16", "--layers", "1", "--steps", "2", "--rate", "0.01"]
    specs = ["transformer", "taipan:taipan.window=16", "model.ffn_main=1.0"]
    few = ["--batch", "4", "--test-rows", "4", "--plot", str(picture)]
    result = CliRunner().invoke(app, ["probe", *specs, *options, *few, "--json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert [(s["task"], s["model"]) for s in shown["scores"]] == [
        (task, model) for task in ("parity", "mqar") for model in specs[:2]
    ]
    assert all(0 <= value <= 1 for s in shown["scores"] for value in s["accuracy"].values())
    assert picture.read_bytes().startswith(b"\x89PNG")
    table = CliRunner().invoke(
        app, ["probe", "mamba2", *options[2:], "--task", "mqar", "--batch", "4", "--test-rows", "4"]
    )
    assert "the values of 8 keys" in table.stdout
