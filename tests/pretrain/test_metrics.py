from __future__ import annotations

import errno
import json
import math

import pytest

from pretrain import metrics


def write(path, steps):
    file = metrics.MetricsFile(path)
    for step in steps:
        file.write({"kind": "train", "step": step, "loss": 1.0 / step})
    file.close()


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, (1, 2))
    with path.open("a") as file:
        file.write('{"kind": "train", "st')
    assert [r["step"] for r in metrics.read(path)] == [1, 2]


def test_rewind_removes_the_future_and_keeps_it_aside(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert metrics.rewind(path, 0) == 0
    write(path, range(1, 8))
    with path.open("a") as file:
        file.write('{"half')
    assert metrics.rewind(path, 4) == 3
    write(path, (5,))
    assert [r["step"] for r in metrics.read(path)] == [1, 2, 3, 4, 5]
    superseded = tmp_path / "metrics.superseded.jsonl"
    assert [r["step"] for r in metrics.read(superseded)] == [5, 6, 7]


def test_not_a_number_is_written_as_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = metrics.MetricsFile(path)
    file.write({"kind": "train", "step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    file.close()
    assert json.loads(path.read_text()) == {"kind": "train", "step": 1, "loss": None, "grad_norm": None}


def test_throughput_counts_only_the_time_inside_steps(monkeypatch):
    clock = iter([0.0, 10.0, 12.0, 100.0, 102.0])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    throughput = metrics.Throughput()
    throughput.start()
    throughput.stop(tokens=100, waited_s=0.5)
    throughput.start()
    throughput.stop(tokens=100, waited_s=0.5)
    assert throughput.reading() == (50.0, 0.25)
    assert throughput.reading() == (0.0, 0.0)


@pytest.mark.parametrize(("reached", "peak", "share"), [(1e9, 4e9, 0.25), (0, 1, 0), (1, 1, 1)])
def test_utilisation(reached, peak, share):
    assert metrics.utilisation(reached, peak) == share


@pytest.mark.parametrize(("reached", "peak"), [(5e9, 4e9), (1, 0), (-1, 1), (float("nan"), 1)])
def test_a_utilisation_that_cannot_be_is_none(reached, peak):
    assert math.isnan(metrics.utilisation(reached, peak))


class _Disk:
    """A file that takes a few bytes and then no more, until there is room."""

    def __init__(self, room: int) -> None:
        self.room, self.taken = room, b""

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = data[: self.room]
        self.room -= len(part)
        self.taken += part
        return len(part)

    def close(self) -> None:
        pass


def test_records_wait_for_a_full_disk(tmp_path, caplog):
    file = metrics.MetricsFile(tmp_path / "metrics.jsonl")
    file._file.close()
    file._file = disk = _Disk(room=30)
    for step in (1, 2, 3):
        file.write({"kind": "train", "step": step})
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    disk.room = 10_000
    file.write({"kind": "train", "step": 4})
    assert [json.loads(line)["step"] for line in disk.taken.splitlines()] == [1, 2, 3, 4]
    disk.room = 0
    file.write({"kind": "train", "step": 5})
    file.close()
    assert "they are lost" in caplog.text


def test_the_parts_of_a_utilisation_are_the_whole():
    flops = {"gss": 30.0, "head": 10.0, "total": 40.0}
    assert metrics.utilisation_by_part(flops, 2.0, 800.0) == {"mfu": 0.1, "mfu_parts": {"gss": 0.075, "head": 0.025}}
    assert set(metrics.utilisation_by_part(flops, 2.0, 1.0)) == {"mfu"}, "a share that cannot be has no parts"
