"""The same command under every launcher, and the whole demo."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

from pretrain import metrics
from pretrain.checkpoint import newest
from tests.conftest import write_corpus
from tests.e2e.runs import ROOT, command, pha, training, validation, write_config


def test_torchrun_and_slurm_and_alone_train_the_same_curve(tiny_dataset, tmp_path):
    curves = {}
    for name in ("torchrun", "slurm", "alone"):
        run = tmp_path / name / "run"
        run.parent.mkdir()
        arguments = (write_config(run.parent, tiny_dataset, run), "model.dropout=0", "train.steps=3")
        if name == "torchrun":
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            program = command("train", *arguments)[1:]
            subprocess.run([*launcher, *program], check=True, cwd=ROOT, timeout=300, capture_output=True)
        elif name == "slurm":
            _as_slurm_tasks(command("train", *arguments), tasks=2)
        else:
            assert pha("train", *arguments).returncode == 0
        curves[name] = training(run)
    assert len(curves["alone"]) == 3
    for step, (loss, _, _) in curves["alone"].items():
        assert abs(curves["torchrun"][step][0] - loss) < 1e-5
        assert curves["torchrun"][step] == curves["slurm"][step]


def _as_slurm_tasks(program, tasks):
    """Starts processes with the variables that srun sets."""
    step = {
        "SLURM_JOB_ID": str(os.getpid() % 1000),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_TASKS_PER_NODE": str(tasks),
        "SLURM_STEP_NODELIST": "localhost",
    }
    started = [
        subprocess.Popen(program, cwd=ROOT, env={**os.environ, **step, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)})
        for i in range(tasks)
    ]
    assert [process.wait(timeout=300) for process in started] == [0] * tasks


def test_the_demo_kills_resumes_evaluates_and_reports(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    run, data = tmp_path / "demo", tmp_path / "data"
    small = ("model.preset=pha-nano", "data.seq_len=64", "train.steps=160", "checkpoint.every=20", "logging.every=1")
    arguments = ("demo", "--text", corpus, "--run", run, "--data", data, *small, "eval.every=80", "optim.lr=1e-2")
    result = pha(*arguments)
    assert result.returncode == 0, result.stderr
    killed = json.loads((run / "killed.json").read_text())["step"]
    assert 100 > killed > 80
    records = metrics.read(run / "metrics.superseded.jsonl")
    assert records, "steps were trained twice"
    after = training(run)
    assert all(after[r["step"]][0] == r["loss"] for r in records if r["kind"] == "train")
    assert "to the last digit" in result.stderr
    assert list(after) == list(range(1, 161))
    assert set(validation(run)) == {80, 160}
    evaluation = json.loads((run / "evaluation.json").read_text())
    baselines = json.loads((run / "baselines.json").read_text())
    assert evaluation["validation"]["complete"]
    assert evaluation["validation"]["bits_per_byte"] < baselines["unigram"]
    page = (run / "report.html").read_text()
    assert page.count("<svg") == 8
    assert not re.search(r"""(src|href)=["']https?:""", page), "self-contained"
    assert list((run / "wandb").glob("offline-run-*")), "wandb works without a key and without asking"

    done = {
        path: path.stat().st_mtime_ns for path in (data / "index.json", run / "baselines.json", run / "sample.json")
    }
    again = pha(*arguments)
    assert again.returncode == 0, again.stderr
    assert done == {path: path.stat().st_mtime_ns for path in done}, "what is done is not done again"
    assert list(training(run)) == list(range(1, 161))
    _reading_commands(run, evaluation)


def _reading_commands(run, evaluation):
    shown = json.loads(pha("eval", run, "--json", "--split", "test").stdout)
    assert shown["loss"] == evaluation["test"]["loss"]
    assert shown["step"] == newest(run / "checkpoints").step == 160
    status = json.loads(pha("status", run, "--json").stdout)
    assert status["step"] == 160
    assert [r["phase"] for r in status["ranks"]] == ["done", "done"]
    one, two = (pha("generate", run, "The", "--tokens", 20, "--seed", seed).stdout for seed in (1, 1))
    assert one == two
    assert one.startswith("The")
