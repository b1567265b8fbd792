"""The list of nodes to keep off: by many writers, torn files, and for people."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import cordon
from cluster.cordon import Cordon, Entry
from cluster.errors import ClusterError
from tests.cluster.test_slurm import job, stand_in
from tests.e2e.runs import ROOT, pha


def test_the_last_word_on_a_node_counts_and_expires(tmp_path):
    listed = Cordon(tmp_path / "shared" / "cordon.jsonl")
    assert listed.active() == {}
    listed.add("n1", "slow", 24, now=1000.0)
    listed.add("n2", "no disk", 1, evidence="preflight/000001.json", run="/runs/a", job="7", now=1001.0)
    listed.add("n1", "still slow", 48, now=1002.0)
    assert {node: entry.reason for node, entry in listed.active(2000.0).items()} == {
        "n2": "no disk",
        "n1": "still slow",
    }
    assert list(listed.active(1001.0 + 3600)) == ["n1"]
    assert listed.remove("n1", now=3000.0) and not listed.remove("n1", now=3001.0)
    assert list(listed.active(3002.0)) == ["n2"]


def test_torn_and_foreign_lines_cost_nothing_else(tmp_path):
    listed = Cordon(tmp_path / "cordon.jsonl")
    listed.add("n1", "slow", 24, now=1000.0)
    with listed.path.open("a") as file:
        file.write('{"node": "n2", "since": 10')  # a crash in the middle of a line
    listed.add("n3", "hot", 24, now=1001.0)
    known = asdict(listed.active(2000.0)["n1"])
    bad = [
        {**known, "node": "--exclude=x"},
        {**known, "node": 7},
        {**known, "node": "n8,n9"},
        {**known, "node": "n4", "since": "x"},
        {**known, "node": "n5", "more": 1},
        ["n6"],
    ]
    with listed.path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in bad)
    assert list(listed.active(2000.0)) == ["n1", "n3"]


@given(st.binary(max_size=300))
def test_any_bytes_are_read(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("cordon") / "cordon.jsonl"
    path.write_bytes(content)
    listed = Cordon(path)
    listed.add("n1", "slow", 24, now=1000.0)
    assert "n1" in listed.active(2000.0)


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    code = (
        "import sys; from pathlib import Path; from cluster.cordon import Cordon\n"
        "for i in range(50): Cordon(Path(sys.argv[1])).add(f'{sys.argv[2]}-{i}', 'x' * 1500, 24)"
    )
    path = str(tmp_path / "cordon.jsonl")
    writers = [subprocess.Popen([sys.executable, "-c", code, path, name], cwd=ROOT) for name in ("a", "b", "c")]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(Cordon(tmp_path / "cordon.jsonl").active()) == 150


def test_what_is_no_node_and_what_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(ClusterError, match="no name of a node"):
        Cordon(tmp_path / "cordon.jsonl").add("n1;rm", "x", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match="cannot be written"):
        Cordon(tmp_path / "file" / "cordon.jsonl").add("n1", "x", 1)


def test_a_launch_does_without_the_cordoned_nodes_that_this_cluster_has(tmp_path, monkeypatch):
    listed = Cordon(tmp_path / "cordon.jsonl")
    launched = job(run=str(tmp_path), folder=str(tmp_path), preflight={"cordon": str(listed.path)})
    stand_in(tmp_path, monkeypatch, "sinfo", "printf 'n1\\nn2\\nn2\\n'")
    stand_in(tmp_path, monkeypatch, "sbatch", f'echo "$@" >> {tmp_path}/asked; echo 17')
    assert cordon.submit(launched) == ("17", [])
    listed.add("n2", "hot", 24)
    listed.add("elsewhere", "hot", 24)
    assert cordon.submit(launched) == ("17", ["n2"])
    assert "--exclude=n2 " in (tmp_path / "asked").read_text().splitlines()[-1]
    refusal = f'case "$*" in *exclude*) echo "not available" >&2; exit 1;; esac; echo "$@" >> {tmp_path}/asked; echo 18'
    stand_in(tmp_path, monkeypatch, "sbatch", refusal)
    assert cordon.submit(launched) == ("18", []), "too few others: better a suspect node than none"


def test_the_message_for_those_who_run_the_cluster():
    seen = "GPU 3 has 2 uncorrected memory errors"
    text = cordon.note(Entry("n7", 0.0, 3600.0, seen, "/runs/a/x.json", job="9", by="me"))
    assert "Subject: node n7" in text and "in job 9" in text and "GPU 3 has 2 uncorrected" in text
    assert "/runs/a/x.json" in text and "NodeName=n7 State=DRAIN" in text


def test_the_command_shows_adds_and_removes(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "sinfo", "printf 'n1\\nn2\\n'")
    where = tmp_path / "cordon.jsonl"
    added = pha("cordon", "add", where, "n3", "--reason", "its fan is loud", "--hours", 2)
    assert added.returncode == 0 and "What: its fan is loud" in added.stdout, added.stderr
    assert added.stderr == "warning: sinfo here knows no node n3; the entry has no effect here.\n"
    (entry,) = json.loads(pha("cordon", "list", where, "--json").stdout)
    assert entry["node"] == "n3" and entry["expires"] - entry["since"] == 7200
    assert "n3" in pha("cordon", "list", where).stdout
    assert "Subject: node n3" in pha("cordon", "note", where, "n3").stdout
    assert "may be used again" in pha("cordon", "remove", where, "n3").stdout
    gone = pha("cordon", "note", where, "n3")
    assert gone.returncode == 2 and "is not cordoned" in gone.stderr
