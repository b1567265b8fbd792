from __future__ import annotations

import pytest

from pretrain.distributed import World, discover, first_host, rendezvous
from pretrain.errors import RunError

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "1",
}
SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "77",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
}


def test_places():
    assert discover({}) == World(0, 0, 1, 1)
    assert discover(TORCHRUN) == World(5, 1, 8, 4)
    assert discover(SLURM) == World(3, 1, 4, 2)
    assert discover({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) == World(), "a shell inside an allocation is alone"


def test_a_half_set_environment_is_refused():
    with pytest.raises(RunError, match="MASTER_ADDR, MASTER_PORT"):
        discover({"RANK": "0", "WORLD_SIZE": "2"})


def test_rendezvous_is_the_same_on_every_rank():
    assert rendezvous(TORCHRUN) == ("a", 1)
    first = rendezvous(SLURM)
    assert first == rendezvous({**SLURM, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    assert first[0] == "gpu03"
    assert 20_000 <= first[1] < 40_000
    assert rendezvous({})[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("a-[7,9]-ib", "a-7-ib"),
        ("rack1-n[001-128]", "rack1-n001"),
    ],
)
def test_first_host(nodelist, host):
    assert first_host(nodelist) == host
