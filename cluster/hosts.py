"""The hosts of a run without a scheduler: a file with one host a line, and which of them train when some are lost."""

from __future__ import annotations

import fcntl
import re
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ClusterError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Host:
    """One line of the file."""

    name: str
    ranks: int
    address: str = ""
    """Where the others reach it; empty is its name."""


def read(path: Path, ranks: int) -> list[Host]:
    """The hosts of a file, in its order; the first one leads.

    A line is `name [ranks=N] [address=10.0.0.3]`, and `#` begins a comment. `ranks` is for hosts that name no number.
    Raises ClusterError.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(
            f"The host file {path} cannot be read ({error}); give a text file, one host a line."
        ) from None
    hosts: list[Host] = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        host = _host(words, ranks, f"{path}, line {number}")
        if host.name in (other.name for other in hosts):
            raise ClusterError(f"{path}, line {number}: the host {host.name} is there twice; name each host once.")
        hosts.append(host)
    if not hosts:
        raise ClusterError(f"{path} names no host; write one a line, the one that leads first.")
    return hosts


def _host(words: list[str], ranks: int, where: str) -> Host:
    name, *options = words
    if not _NAME.fullmatch(name):
        raise ClusterError(f"{where}: {name!r} is no host's name; use letters, digits, dots, - and _.")
    known = {"ranks": str(ranks), "address": ""}
    given: set[str] = set()
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or key not in known or not value:
            raise ClusterError(f"{where}: {option!r} is unknown; after its name a host may have ranks=N and address=A.")
        if key in given:
            raise ClusterError(f"{where}: {key} is there twice; give it once.")
        given.add(key)
        known[key] = value
    if not known["ranks"].isdecimal() or int(known["ranks"]) < 1:
        raise ClusterError(f"{where}: ranks ({known['ranks']}) must be a whole number of at least 1.")
    if known["address"] and not re.fullmatch(r"[A-Za-z0-9._:-]+", known["address"]):
        raise ClusterError(f"{where}: {known['address']!r} is no address; give an IP address or a name.")
    return Host(name, int(known["ranks"]), known["address"])


def this_host(hosts: Sequence[Host], path: Path, name: str | None = None) -> Host:
    """The host that this process is on: `name`, or the machine's own, with or without its domain.

    Raises ClusterError.
    """
    own = name if name is not None else socket.gethostname()
    found = [host for host in hosts if host.name == own]
    if not found and name is None:
        found = [host for host in hosts if host.name.split(".")[0] == own.split(".")[0]]
    if len(found) != 1:
        advice = "add it" if name is not None else "add it, or say with --host NAME which of them this is"
        raise ClusterError(
            f"The host {own} is not in {path} ({', '.join(host.name for host in hosts[:8])}"
            f"{', …' if len(hosts) > 8 else ''}); {advice}."
        )
    return found[0]


def largest_set(hosts: Sequence[Host], fits: Callable[[int], bool]) -> list[Host]:
    """Of these hosts those with the most ranks that `fits` accepts, the first one always among them; else none.

    Of sets with as many ranks the one with earlier hosts is taken. Time is in hosts times ranks.
    """
    reached: dict[int, tuple[int, ...]] = {hosts[0].ranks: (0,)}
    for index, host in enumerate(hosts[1:], 1):
        for total, chosen in sorted(reached.items()):
            reached.setdefault(total + host.ranks, (*chosen, index))
    none: tuple[int, ...] = ()
    best = next((reached[total] for total in sorted(reached, reverse=True) if fits(total)), none)
    return [hosts[index] for index in best]


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has this IPv4 address (Linux), such as ib0."""
    if sys.platform != "linux":
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
