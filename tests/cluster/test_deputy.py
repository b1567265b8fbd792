"""A deputy's patience, with looks of the test's own; `tests/slurm` has a real node that is lost."""

from __future__ import annotations

from pathlib import Path

from cluster import deputy
from cluster.deputy import ASK_LOOKS, STILL_LOOKS, Pulse, pulse_file, watch


def test_a_pulse_that_beats_is_not_still_and_one_that_cannot_be_read_is_not_judged(tmp_path):
    pulse, looks = tmp_path / "pulse", []

    def sleep(_):
        looks.append(len(looks))
        if len(looks) <= 40:
            pulse.write_text(str(len(looks) // 20))  # a beat every 20 looks
        elif len(looks) <= 60:
            pulse.unlink(missing_ok=True)
        else:
            pulse.write_text("the same from now on")

    assert "no pulse" in watch(pulse, lambda: True, sleep)
    assert len(looks) == 61 + STILL_LOOKS


def test_a_node_that_the_job_has_lost_is_no_supervisors_whatever_its_pulse(tmp_path):
    pulse, answers = tmp_path / "pulse", iter([True, True, False])
    looks = []

    def sleep(_):
        looks.append(pulse.write_text(str(len(looks))))

    assert "taken its node" in watch(pulse, lambda: next(answers), sleep)
    assert len(looks) == 3 * ASK_LOOKS


def test_the_pulse_beats_by_itself_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(deputy, "PULSE_S", 0.01)
    path: Path = pulse_file(tmp_path, "7")
    with Pulse(tmp_path, "7"):
        seen = set()
        while len(seen) < 3:
            if path.exists():
                seen.add(path.read_text())
    assert not path.exists()
