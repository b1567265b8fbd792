"""Each guard of a run, shown to bite: what is refused leaves everything as it was, and the cause is what is said."""

from __future__ import annotations

import json
import shutil
import signal
import time

import pytest

from data_pipeline.dataset import Dataset
from data_pipeline.loader import Loader
from pretrain import metrics
from pretrain.checkpoint import MANIFEST, MARKER, newest
from pretrain.fence import Fence
from pretrain.files import sha256
from tests.conftest import write_corpus
from tests.e2e.runs import pha, start, training, wait_for, write_config
from tests.e2e.test_bad_input import ALONE, fails_with


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    """A short finished run on one rank."""
    folder = tmp_path_factory.mktemp("guards")
    config = write_config(folder, tiny_dataset, folder / "run")
    assert pha("train", config, *ALONE, "train.steps=4").returncode == 0
    return folder / "run"


@pytest.fixture
def again(trained, tiny_dataset, tmp_path):
    """(a copy of the run, a function that goes on with it)."""
    run = shutil.copytree(trained, tmp_path / "run")
    config = write_config(tmp_path, tiny_dataset, run)
    return run, lambda *overrides: pha("train", config, *ALONE, "train.steps=6", *overrides)


def test_a_refused_start_changes_nothing(again, tmp_path):
    run, go_on = again
    before = (run / "config.yaml").read_bytes()
    corpus = write_corpus(tmp_path / "other.jsonl", stop=40)
    other = tmp_path / "other"
    assert pha("data", "build", other, corpus, "--vocab", 512).returncode == 0
    fails_with(go_on(f"data.path={other}"), "other")
    fails_with(go_on("train.micro_batch=3"), "multiple of")
    assert (run / "config.yaml").read_bytes() == before
    assert max(training(run)) == 4


def test_optimizer_settings_count_after_a_resume(again, tmp_path):
    run, go_on = again
    twin = shutil.copytree(run, tmp_path / "twin")
    assert go_on().returncode == 0
    assert go_on(f"run_dir={twin}", "optim.weight_decay=5.0").returncode == 0
    assert sha256(newest(run / "checkpoints").weights) != sha256(newest(twin / "checkpoints").weights)


def test_another_batch_size_continues_the_same_stream(again):
    run, go_on = again
    assert go_on("train.global_batch=4").returncode == 0
    state = newest(run / "checkpoints").info().state
    assert (state.step, state.sequences) == (6, 4 * 8 + 2 * 4)


def test_weights_that_are_not_what_was_saved_are_noticed(again):
    run, go_on = again
    checkpoint = newest(run / "checkpoints").path
    state = json.loads((checkpoint / "state.json").read_text())
    state["fingerprint"] += 0.01
    (checkpoint / "state.json").write_text(json.dumps(state))
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    entry = {"bytes": (checkpoint / "state.json").stat().st_size, "sha256": sha256(checkpoint / "state.json")}
    (checkpoint / MANIFEST).write_text(json.dumps({**manifest, "state.json": entry}))
    (checkpoint / MARKER).write_text(sha256(checkpoint / MANIFEST) + "\n")
    result = go_on()
    fails_with(result, "they are not the weights that were saved")
    assert result.returncode == 1


def test_a_loss_that_is_not_a_number_stops_the_run_and_is_not_saved(again):
    run, go_on = again
    result = go_on("optim.lr=3e38", "optim.schedule.warmup_steps=0", "optim.clip=0", "checkpoint.every=1")
    fails_with(result, "optim.lr")
    assert result.returncode == 1
    assert newest(run / "checkpoints").step == 4, "no step with such weights was saved"


def test_two_starts_of_one_run(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    config = write_config(tmp_path, tiny_dataset, run)
    with start(run, config, "train.steps=200") as first:
        wait_for(first, lambda: 2 in training(run))
        fails_with(pha("train", config, *ALONE), "Another process is training the run")
        last = max(training(run))
        wait_for(first, lambda: max(training(run)) > last)


def test_an_overtaken_start_publishes_nothing_more(tiny_dataset, tmp_path):
    """As on a node that comes back: the lock is not seen, and a later start exists."""
    run = tmp_path / "run"
    config = write_config(tmp_path, tiny_dataset, run)
    with start(run, config, "train.steps=100000", "eval.every=0", "checkpoint.every=5") as job:
        wait_for(job, lambda: any((run / "checkpoints").glob("step-*")))
        Fence.rise(run / "generations")
        told = (run / "metrics.jsonl").read_bytes()
        assert job.wait() == 77
    more = (run / "metrics.jsonl").read_bytes().removeprefix(told)
    assert more.count(b"\n") <= 2, "at most the record that was on its way"
    note = json.loads((run / "exits" / "000001" / "rank-0.json").read_text())
    assert note["kind"] == "overtaken" and "start 2" in note["words"]
    last = newest(run / "checkpoints").step
    assert start(run, config, f"train.steps={last + 2}", "eval.every=0").wait() == 0, "the run itself goes on"


@pytest.mark.parametrize("phase", ["start", "validate", "save"])
def test_sigterm_in_each_phase_saves_and_goes_on(phase, tiny_dataset, tmp_path):
    run = tmp_path / "run"
    config = write_config(tmp_path, tiny_dataset, run)
    often = ("eval.every=2", "eval.sequences=64", "checkpoint.every=1", "train.steps=100000")

    def at_phase() -> bool:
        try:
            return json.loads((run / "heartbeats" / "rank-0.json").read_text())["phase"] == phase
        except (OSError, ValueError):
            return False

    with start(run, config, *often) as job:
        wait_for(job, at_phase)
        job.signal(signal.SIGTERM)
        assert job.wait() == 75
    (stop,) = [r for r in metrics.read(run / "metrics.jsonl") if r.get("event") == "stop"]
    assert stop["reason"] == "SIGTERM" and 0 <= stop["seconds"] < 60
    step = newest(run / "checkpoints").step
    assert start(run, config, *often[:3], f"train.steps={step + 1}").wait() == 0
    assert list(training(run)) == list(range(1, step + 2))


def test_the_rank_that_failed_first_is_the_one_that_speaks(tiny_dataset, tmp_path, capfd):
    """A shard that only rank 1 reads rots: its sentence, not rank 0's lost connection, reaches the terminal."""
    dataset = shutil.copytree(tiny_dataset, tmp_path / "dataset")
    shard = sorted(dataset.glob("train-*.tar"))[0]
    data = bytearray(shard.read_bytes())
    for place in range(len(data) // 2, len(data), 1536):
        data[place] ^= 1
    shard.write_bytes(data)
    config = write_config(tmp_path, dataset, tmp_path / "run")
    started = time.monotonic()
    code = start(tmp_path / "run", config, "train.steps=300", "data.lanes=2").wait()
    said = capfd.readouterr().err
    assert code == 2, said
    assert shard.name in said
    assert "Traceback" not in said
    assert time.monotonic() - started < 100


def test_a_rank_that_stops_is_named_by_the_other_ones_watchdog(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    config = write_config(tmp_path, tiny_dataset, run)
    with start(run, config, "train.steps=100000", "eval.every=0", "watchdog.step_s=3") as job:
        wait_for(job, lambda: 3 in training(run))
        frozen = job._processes[1]
        frozen.send_signal(signal.SIGSTOP)
        note = run / "exits" / "000001" / "rank-0.json"
        wait_for(job, note.exists)
        frozen.send_signal(signal.SIGCONT)
    record = json.loads(note.read_text())
    assert (record["kind"], record["code"]) == ("hang", 75)
    assert "furthest behind is rank" in record["words"] and "watchdog.step_s" in record["words"]
    stacks = (run / "logs" / "stacks-rank-0.txt").read_text()
    assert "all_reduce" in stacks or "backward" in stacks or "step" in stacks


def test_damaged_data_is_left_out_and_listed_by_choice(tiny_dataset, tmp_path):
    dataset = shutil.copytree(tiny_dataset, tmp_path / "data")
    with Dataset.open(dataset) as sound:
        split = sound.split("train")
        block = Loader(split, seq_len=32, global_batch=8).order.locate(0)[0].block  # the run's first sequence
        row = split.blocks[block]
        shard = dataset / split.info.shards[int(row["shard"])].name
    data = bytearray(shard.read_bytes())
    data[int(row["offset"]) + 7] ^= 1
    shard.write_bytes(data)
    run = tmp_path / "run"
    config = write_config(tmp_path, dataset, run)
    fails_with(pha("train", config, *ALONE, f"run_dir={tmp_path / 'stopped'}"), f"block {block} is corrupt")
    for steps in (3, 5):  # a resume does not list it again
        result = pha("train", config, *ALONE, f"train.steps={steps}", "data.on_damage=quarantine", "eval.every=0")
        assert result.returncode == 0, result.stderr
    (record,) = [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]
    assert (record["split"], record["block"], record["tokens"]) == ("train", block, int(row["tokens"]))
    assert "1 damaged block(s)" in pha("status", run).stdout
