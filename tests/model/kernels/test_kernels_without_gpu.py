"""What is known of kernels without a GPU: that they compile and do not spill, and how many bytes they move."""

from __future__ import annotations

import pytest

from benchmarks.process import ask, call

COMPILES = {"TRITON_INTERPRET": None}
INTERPRETS = {"TRITON_INTERPRET": "1"}


@pytest.mark.timeout(900)
def test_kernels_compile_for_every_target_within_its_limits_and_spill_nothing():
    found = ask("benchmarks.kernels.resources", "pha-125m", environment=COMPILES)["kernels"]
    assert {one["target"] for one in found} == {"sm_80", "sm_90", "sm_100", "gfx942"}
    shared = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
    registers = {"sm_80": 255, "sm_90": 255, "sm_100": 255, "gfx942": 512}
    for one in found:
        assert one["registers"] <= registers[one["target"]] and one["shared"] <= shared[one["target"]], one
        assert one["spills"] == 0, one
        assert 0 < one["occupancy"] <= 1, one
    assert {one["module"].rsplit(".", 1)[-1] for one in found} == {
        *("gated_scan", "fusion", "rotary", "swiglu", "rms_norm", "cross_entropy", "chunked_programs"),
    }


def test_pointwise_kernels_move_little_more_than_they_must():
    names = ("RMSNorm", "add + RMSNorm", "QK norm + RoPE", "SwiGLU, auxiliary", "fusion epilogue")
    only = [word for name in names for word in ("--only", name)]
    found = ask("benchmarks.kernels.traffic", "pha-125m", "--tokens", "256", *only, environment=INTERPRETS)["cases"]
    assert [case["name"] for case in found] == list(names)
    for case in found:
        for which, moved in case["passes"].items():
            assert moved["kernel"] <= 1.1 * moved["floor"], (case["name"], which, moved)
            assert moved["kernel"] < moved["chain"], (case["name"], which, moved)


def test_the_gpu_benchmark_runs_in_the_interpreter():
    small = ("--device", "cpu", "--batch", "1", "--tokens", "20", "--repeats", "1", "--skip-models")
    text = call("benchmarks.gpu", "pha-nano", *small, "--only", "RMSNorm", "fusion epilogue", environment=INTERPRETS)
    assert "| RMSNorm |" in text and "| fusion epilogue |" in text
