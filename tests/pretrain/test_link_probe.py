"""Two nodes on this machine sum together, or fail to and say so."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from pretrain.distributed import free_port
from tests.e2e.runs import ROOT


def run(groups, hosts, timeout_s=20.0, **task):
    """host → its stages, as {stage: line}."""
    text = json.dumps({"groups": groups, "port": free_port(), "timeout_s": timeout_s, "size_mb": 0.5, **task})
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    started = {
        host: subprocess.Popen(
            [sys.executable, "-m", "pretrain.link_probe", text], cwd=ROOT, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL, env={**env, "SLURMD_NODENAME": host},
        ) for host in hosts
    }  # fmt: skip
    said = {host: process.communicate(timeout=100)[0].splitlines() for host, process in started.items()}
    return {host: {(one := json.loads(line))["stage"]: one for line in lines} for host, lines in said.items()}


def test_a_group_sums_right_and_each_node_is_timed():
    said = run([["localhost", "b"], ["c"]], ["localhost", "b"], gemm=True)
    for host in ("localhost", "b"):
        assert list(said[host]) == ["imported", "device", "reduced", "gemm", "end"], said[host]
        assert said[host]["reduced"]["right"] and said[host]["reduced"]["mb_s"] > 0
        assert said[host]["gemm"]["rates"][0] > 1e8


def test_who_is_not_there_is_not_waited_for():
    said = run([["localhost", "b"]], ["localhost"], timeout_s=1.0)["localhost"]
    assert list(said) == ["imported", "device", "failed"] and said["failed"]["at"] == "join"
