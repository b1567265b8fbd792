"""The file of hosts, and which of them go on when some are lost."""

from __future__ import annotations

import itertools
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ClusterError
from cluster.hosts import Host, interface_of, largest_set, read, this_host


def file(tmp_path, text):
    path = tmp_path / "hosts"
    path.write_text(text)
    return path


def test_a_line_is_a_host(tmp_path):
    path = file(tmp_path, "# ours\ngpu01 ranks=4 address=10.0.0.3 # leads\n\n  gpu02.lab address=fe80::1\ngpu03\n")
    assert read(path, 8) == [Host("gpu01", 4, "10.0.0.3"), Host("gpu02.lab", 8, "fe80::1"), Host("gpu03", 8)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# nobody\n", "names no host"),
        ("a\nb slots=8\n", "line 2: 'slots=8' is unknown"),
        ("a 4\n", "'4' is unknown"),
        ("a ranks=\n", "'ranks=' is unknown"),
        ("a ranks=0\n", r"ranks \(0\) must be a whole number of at least 1"),
        ("a ranks=many\n", "ranks"),
        ("a ranks=2 ranks=2\n", "ranks is there twice"),
        ("a\nb\na ranks=2\n", "line 3: the host a is there twice"),
        ("../a\n", "no host's name"),
        ("a address=$(id)\n", "no address"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, text, words):
    with pytest.raises(ClusterError, match=words) as error:
        read(file(tmp_path, text), 1)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_one_sentence_too(tmp_path):
    with pytest.raises(ClusterError, match="cannot be read"):
        read(tmp_path / "none", 1)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ClusterError, match="cannot be read"):
        read(tmp_path / "bytes", 1)


def test_a_host_knows_itself_with_and_without_its_domain(tmp_path, monkeypatch):
    hosts = [Host("gpu01", 1), Host("gpu02.lab.org", 1), Host("gpu02.other.org", 1)]
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu01.lab.org")
    assert this_host(hosts, tmp_path) is hosts[0]
    assert this_host(hosts, tmp_path, "gpu02.lab.org") is hosts[1]
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu02.lab.org")
    assert this_host(hosts, tmp_path) is hosts[1]
    for name in ("gpu02", "gpu09"):
        monkeypatch.setattr(socket, "gethostname", lambda name=name: name)
        with pytest.raises(ClusterError, match=f"The host {name} is not in .* --host NAME"):
            this_host(hosts, tmp_path)
    with pytest.raises(ClusterError, match="The host gpu02 is not in"):
        this_host(hosts, tmp_path, "gpu02")


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.sets(st.integers(1, 30)))
def test_the_largest_set_is_the_largest(ranks, fitting):
    hosts = [Host(f"h{i}", n) for i, n in enumerate(ranks)]
    found = largest_set(hosts, fitting.__contains__)
    subsets = [[hosts[0], *others] for size in range(len(hosts)) for others in itertools.combinations(hosts[1:], size)]
    totals = [sum(h.ranks for h in subset) for subset in subsets if sum(h.ranks for h in subset) in fitting]
    assert sum(h.ranks for h in found) == max(totals, default=0)
    assert found in subsets or found == []


def test_the_interface_of_an_address():
    assert interface_of("127.0.0.1") in ("lo", None)
    assert interface_of("192.0.2.1") is None
