"""`pha train --supervise --hosts`: one run on several hosts without a scheduler, the same command on each of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster.hosts import Host
    from cluster.leader import Begin, Patience
    from pretrain.config import RunConfig


def supervise_on_hosts(
    config: RunConfig, command: list[str], ranks: int, supervised: bool, file: Path | None, name: str | None
) -> int:
    """Leads or follows, as this host's place in the file says, until the run is done; returns the exit code.

    Raises RunError or ClusterError.
    """
    from cluster.errors import ClusterError
    from cluster.hosts import read, this_host
    from cluster.leader import Patience
    from cluster.meeting import Meeting
    from pretrain.deepspeed_config import batch_split

    if file is None:
        raise RunError("--host says which host of a file this is; give the file with --hosts FILE.")
    if not supervised:
        raise RunError("--hosts is for supervised training; add --supervise.")
    hosts = read(file, ranks)
    own = this_host(hosts, file, name)
    batch_split(config, sum(host.ranks for host in hosts))
    try:
        meeting = Meeting(config.run_dir)
    except OSError as error:
        raise ClusterError(f"{config.run_dir} cannot be written ({error}); all hosts must see that folder.") from None
    patience = Patience(config.cluster.host_lost_s, config.cluster.gather_s)
    with meeting.as_host(own.name):
        begin = _begin(config, command, own)
        if own is hosts[0]:
            return _lead(config, hosts, begin, patience)
        return _follow(config, own, hosts[0].name, begin, patience)


def _lead(config: RunConfig, hosts: Sequence[Host], begin: Begin, patience: Patience) -> int:
    from cluster.leader import Leader
    from cluster.policy import Budget
    from cluster.supervise import GAVE_UP, Limits, Supervisor
    from pretrain.cli_cluster import silent_after
    from pretrain.rundir import RunDirectory, config_hash

    directory = RunDirectory(config.run_dir)
    directory.create()
    code = GAVE_UP  # where an error ends this process, the other hosts do not wait for it
    with Leader(
        directory.path, hosts, begin, lambda ranks: _fits(config, ranks), config.cluster.elastic, config_hash(config),
        patience, _tell,
    ) as leader:  # fmt: skip
        leader.supervisor = Supervisor(
            directory.path, sum(host.ranks for host in hosts), leader, Limits(silent_after(config)),
            Budget(config.cluster.relaunches), leader.sleep,
        )  # fmt: skip
        try:
            code = leader.supervisor.supervise()
        finally:
            leader.finish(code)
    return code


def _follow(config: RunConfig, own: Host, leader: str, begin: Begin, patience: Patience) -> int:
    from cluster.follower import Follower
    from pretrain.rundir import config_hash

    return Follower(config.run_dir, own, leader, begin, config_hash(config), patience, _tell).follow()


def _begin(config: RunConfig, command: list[str], own: Host) -> Begin:
    """What starts this host's ranks."""
    import dataclasses

    from cluster.hosts import interface_of
    from cluster.local import LocalJob, Place
    from cluster.run_files import START, mark_file
    from pretrain.rundir import RunDirectory

    directory = RunDirectory(config.run_dir)
    # Gloo and NCCL would take the interface of the host's name, which on many hosts is the loopback's.
    interface = config.cluster.interface or (interface_of(own.address) if own.address else None)
    env = dict(config.cluster.env)
    if interface is not None:
        env |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), interface)

    def begin(ranks: int, place: Place, mark: str) -> LocalJob:
        told = {**env, START: str(mark_file(directory.path, mark))}
        return LocalJob(command, ranks, directory.logs, dataclasses.replace(place, env=told))

    return begin


def _fits(config: RunConfig, ranks: int) -> bool:
    from pretrain.deepspeed_config import batch_split

    try:
        batch_split(config, ranks)
    except RunError:
        return False
    return True


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
