"""What nvidia-smi prints, and what of it is a defect."""

from __future__ import annotations

import pytest

from cluster import gpus

WELL = (
    "0, NVIDIA H100 80GB HBM3, 550.54.15, 0, 33, 345, 1980, 0x0000000000000001, 69.71, 700.00, 4, 81559\n"
    "1, NVIDIA H100 80GB HBM3, 550.54.15, 0, 31, 345, 1980, 0x0000000000000001, 70.02, 700.00, 4, 81559\n"
)
GAMING = "0, NVIDIA GeForce RTX 3080, 470.63.01, [N/A], 54, 210, 2100, 0x0000000000000000, [N/A], 320.00, 1211, 10240\n"


def one(**changes):
    return {**gpus.parse(WELL)[0], **changes}


def test_each_gpu_is_a_line_and_what_it_does_not_tell_is_none():
    first, second = gpus.parse(WELL)
    assert (first["index"], second["index"], first["driver_version"]) == (0, 1, "550.54.15")
    assert first["clocks_event_reasons.active"] == 1 and first["power.limit"] == 700.0
    (gaming,) = gpus.parse(GAMING)
    assert gaming["ecc.errors.uncorrected.volatile.total"] is None and gaming["power.draw"] is None
    assert gpus.parse("\n") == []


def test_other_answers_are_no_gpus():
    with pytest.raises(ValueError, match="not one value for each"):
        gpus.parse("No devices were found\n")


def test_idle_gpus_without_a_flaw_have_none():
    assert gpus.defects(gpus.parse(WELL), 2) == []


@pytest.mark.parametrize(
    ("changes", "fatal", "words"),
    [
        ({"ecc.errors.uncorrected.volatile.total": 3.0}, True, "3 uncorrected memory errors"),
        ({"memory.used": 40_000.0}, True, "40000 MiB in use before"),
        ({"clocks_event_reasons.active": 0x48}, False, "hardware slowdown, too hot"),
        ({"clocks_event_reasons.active": 0x80}, False, "power brake"),
        ({"temperature.gpu": 91.0}, False, "91 °C while idle"),
    ],
)
def test_defects(changes, fatal, words):
    ((found, told),) = gpus.defects([one(**changes)], 1)
    assert found is fatal and words in told and told.startswith("GPU 0 ")


def test_a_lost_gpu_and_reasons_that_are_none():
    assert gpus.defects(gpus.parse(WELL), 8) == [(True, "2 of 8 GPUs are there")]
    assert gpus.defects([one(**{"clocks_event_reasons.active": 0x1 | 0x2 | 0x4 | 0x100})], 1) == []


def test_an_older_driver_is_asked_by_its_own_names():
    asked = []

    def driver(arguments):
        asked.append(arguments[1])
        old = "clocks_event_reasons" in arguments[1]
        return 'Field "clocks_event_reasons.active" is not a valid field to query.\n' if old else WELL

    assert len(gpus.query(driver)) == 2 and "clocks_throttle_reasons.active" in asked[1]
    with pytest.raises(RuntimeError, match="does not know"):
        gpus.query(lambda arguments: 'Field "x" is not a valid field to query.\n')


def test_no_driver_and_one_that_hangs_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="not installed"):
        gpus.query()
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed because ...'; exit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    with pytest.raises(RuntimeError, match="ends with 9: NVIDIA-SMI has failed"):
        gpus.query()
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    monkeypatch.setattr(gpus, "_TIMEOUT_S", 0.2)
    with pytest.raises(RuntimeError, match=r"has not answered for 0\.2 s"):
        gpus.query()
