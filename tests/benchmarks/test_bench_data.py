"""The benchmark of the data pipeline at its smallest: it must go on working, and its own checks must hold."""

from __future__ import annotations

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import urllib3

from benchmarks import build, scale
from benchmarks.data.measure import Meter
from benchmarks.data.readers import READERS, Library
from benchmarks.data.run import SECTIONS
from benchmarks.data.runner import Runner
from benchmarks.data.servers import http_server
from benchmarks.data.sizes import Sizes
from benchmarks.data.tables import Goal, Section
from benchmarks.errors import BenchError
from benchmarks.tables import shown
from pretrain.cli_bench import bench_data
from pretrain.errors import RunError

ROOT = Path(__file__).resolve().parents[2]
OURS = {"cluster", "data_pipeline", "model", "pretrain"}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    work = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "pretrain.cli", "bench", "data", "--quick", "--json", "--work", str(work)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(work.iterdir()), "what was written for the measurement is removed"
    return json.loads(done.stdout)


def test_every_section_has_rows_goals_and_its_machine(quick):
    assert tuple(quick["sections"]) == SECTIONS
    assert quick["machine"]["cores"] >= 1
    assert quick["versions"]["torch"]
    for section in quick["sections"].values():
        assert section["rows"]
        assert section["goals"]
        assert all(len(row) == len(section["columns"]) for row in section["rows"])


def test_ids_and_batches_are_right(quick):
    sections = quick["sections"]
    compared = sections["tokenization"]["checks"]["compared"]
    assert compared["differing"] == 0
    assert compared["documents"] > 50
    assert all(fact["all_once"] for fact in sections["reading"]["checks"].values())
    assert sections["resume"]["checks"]["ours-raw"] == {"exact": 1.0, "resumes": 1}


def test_all_readers_of_this_environment_read_everything_and_resume(tmp_path):
    from benchmarks.data import ours_reading, peer_memmap, peer_webdataset, stream

    length, file = 64, str(tmp_path / "stream.bin")
    expected = stream.write(file, 2_048, length, seed=0)
    ours_reading.write(file, str(tmp_path / "ours"), block_tokens=1_000)
    readers = [(ours_reading.read, "ours", {"form": form}) for form in ("raw", "full", "rows")]
    readers += [(peer_memmap.read, "stream.bin", {"fancy": fancy}) for fancy in (False, True)]
    for members in (1, 64):
        peer_webdataset.write(file, str(tmp_path / f"web-{members}"), length, members)
        readers.append((peer_webdataset.read, f"web-{members}", {"members": members}))
    for read, folder, options in readers:
        arguments = {"path": str(tmp_path / folder), "length": length, **options}
        found = read(mode="check", stops=[0, 33], **arguments)
        assert found["count"] == expected["count"]
        kind = "labels" if folder == "ours" else "rows"
        assert found["tokens" if folder == "ours" else "rows"] == expected[kind], folder
        assert found["order"] != expected["order"], "shuffled"
        (tmp_path / "state.json").write_text(json.dumps(found["states"]["33"]["state"]), encoding="utf-8")
        resumed = read(mode="resume", state_file=str(tmp_path / "state.json"), **arguments)
        assert resumed["batch"] == found["states"]["33"]["batch"]
        assert read(mode="speed", **arguments)["items"] == 2_048


def test_what_is_not_installed_is_said(quick):
    rows = {row[0]: row[1] for row in quick["sections"]["tokenization"]["rows"]}
    assert rows["HF datasets.map, tokenizers BPE"] == "not installed"


def test_a_section_is_a_table_with_its_goals():
    section = Section(key="x", title="Title", columns=("", "MB/s"), rows=[["ours", 1234.5], ["peer", None]])
    section.goals.append(Goal.least("fast", 3.0, 2.0))
    text = section.markdown()
    assert "| ours | 1,234 |" in text
    assert "* Goal: fast: 3.00 (met)." in text


@pytest.mark.parametrize("nginx", [False, True])
def test_the_servers_give_ranges(tmp_path, monkeypatch, nginx):
    if nginx and not (shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")):
        pytest.skip("needs nginx")
    if not nginx:
        monkeypatch.setattr("benchmarks.data.servers.shutil.which", lambda *_, **__: None)
    (tmp_path / "data").mkdir()
    (tmp_path / "secret").write_text("outside of what is served")
    (tmp_path / "data" / "file.tar").write_bytes(bytes(range(200)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with http_server(tmp_path / "data", tmp_path, environment) as (name, url):
        assert name == ("nginx" if nginx else "Python's threaded server")
        answer = urllib3.request("GET", f"{url}/file.tar", headers={"Range": "bytes=10-19"})
        assert (answer.status, answer.data) == (206, bytes(range(10, 20)))
        assert answer.headers["Content-Range"] == "bytes 10-19/200"
        host = urlsplit(url)
        for path in ("/../secret", "/file.tar/../../secret", "/%2e%2e/secret"):  # which clients would tidy up
            with socket.create_connection((host.hostname, host.port), 10) as raw:
                raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                answer = b"".join(iter(lambda: raw.recv(4096), b""))
            assert answer.split()[1] in (b"400", b"404"), path
            assert b"outside" not in answer


def test_an_interpreter_that_is_none_is_named_with_the_fix(tmp_path):
    for program in ("true", "echo", "false"):
        with pytest.raises(BenchError, match=rf"/bin/{program} .*: give an interpreter as --peers\.$"):
            Runner(tmp_path, 1, Path(f"/bin/{program}"), lambda _: None)


@pytest.mark.parametrize("border", [0, 31, 63])
def test_damage_is_damage_only_if_its_repair_helps(tmp_path, border):
    """In a format with a border within the first tokens that are looked for."""
    sizes = Sizes(sequences=1024, length=256)

    class Fake:
        work, broken = tmp_path, False

        def run(self, worker, arguments, peer=False):
            data = os.urandom(sizes.sequences * sizes.length * 2)
            (tmp_path / "stream.bin").write_bytes(data)
            cut = 512 * 512 + 256 + border
            (tmp_path / "ours").mkdir()
            (tmp_path / "ours" / "a").write_bytes(data[:cut] + b"border" + data[cut:])
            self.whole = (tmp_path / "ours" / "a").read_bytes()
            return {}

        def attempt(self, contestant):
            if self.broken or (tmp_path / "ours" / "a").read_bytes() != self.whole:
                raise BenchError("damaged.")

    library = Library(runner := Fake(), sizes)
    library._written.add("ours")
    assert library.notices_damage(READERS[0])
    runner.broken = True
    with pytest.raises(BenchError):
        library.notices_damage(READERS[0])


def test_a_stage_that_one_log_lacks_has_no_ratio():
    one = {"wall_s": 30.0, "stages_s": {"read": 10.0, "encode": 20.0}}
    two = {"wall_s": 15.0, "stages_s": {"read": 5.0}}
    lines = build.table({"1 worker": one, "2 workers": two}).splitlines()
    assert lines[-3:] == ["| read | 10.0 | 5.0 | 2.00 |", "| encode | 20.0 | – | – |", "| all | 30.0 | 15.0 | 2.00 |"]


def test_a_page_without_markers_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.data.run.run", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(build, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(scale, "_row", lambda *_: pytest.fail("measured"))
    page = tmp_path / "page.md"
    page.write_text("no markers")
    with pytest.raises(RunError, match="begin -->"):
        bench_data(quick=True, write=page, megabytes=1.0, sequences=1024)
    for module, arguments in ((build, ["c.yaml"]), (scale, [])):
        monkeypatch.setattr(sys, "argv", ["x", *arguments, "--write", str(page)])
        with pytest.raises(RunError, match="begin -->"):
            module.main()


def test_figures_are_short():
    assert [shown(value) for value in (None, "no", 12345.6, 12.34, 1.234, 0.0123, 0.0)] == [
        *("–", "no", "12,346", "12.3", "1.23", "0.012", "0"),
    ]


def test_cpu_time_of_a_living_child_counts_from_the_start_of_the_block():
    spin = "sum(range(10**7)); print(flush=True); input(); sum(range(3 * 10**7)); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        with Meter() as idle:
            pass
        with Meter() as meter:
            child.stdin.write("\n")
            child.stdin.flush()
            child.stdout.readline()
        child.stdin.write("\n")
    assert idle.cpu_s < 0.05
    assert 0.05 < meter.cpu_s <= meter.wall_s * 1.2 + 0.05


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/data").glob("peer_*.py")), ids=lambda path: path.name)
def test_peers_run_without_our_packages(path):
    seen, waiting = set(), [path]
    while waiting:
        file = waiting.pop()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in OURS, f"{file.name} imports {name}"
                found = ROOT / f"{name.replace('.', '/')}.py"
                if name.startswith("benchmarks.") and found not in seen:
                    seen.add(found)
                    waiting.append(found)
