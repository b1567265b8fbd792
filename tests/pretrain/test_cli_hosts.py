"""`pha train --hosts`: what is refused before anything begins."""

from __future__ import annotations

import pytest
import yaml

from cluster.errors import ClusterError
from pretrain import cli_hosts, config_file
from pretrain.errors import RunError
from tests.e2e.runs import CONFIG


@pytest.mark.parametrize(
    ("text", "options", "error", "words"),
    [
        ("a\nb\n", {"supervised": False}, RunError, "add --supervise"),
        (None, {}, RunError, "give the file with --hosts"),
        ("a\nb\n", {"name": "c"}, ClusterError, "The host c is not in"),
        ("a\nb\nc\n", {}, RunError, r"multiple of the number of ranks \(3\)"),
        ("a ranks=8\nb ranks=8\n", {}, RunError, r"multiple of the number of ranks \(16\)"),
        ("a\nb\n", {}, ClusterError, "cannot be written"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, text, options, error, words):
    file = tmp_path / "hosts" if text is not None else None
    if file is not None:
        file.write_text(text)
    (tmp_path / "file").touch()
    tree = yaml.safe_load(CONFIG)
    tree["data"]["path"] = str(tmp_path / "data")
    config = config_file.parse({**tree, "run_dir": str(tmp_path / "file" / "run")}, "test")
    chosen = {"supervised": True, "name": "a", **options}
    with pytest.raises(error, match=words):
        cli_hosts.supervise_on_hosts(config, [], 1, chosen["supervised"], file, chosen["name"])


def test_only_worlds_that_divide_every_batch_fit(tmp_path):
    tree = yaml.safe_load(CONFIG)
    tree["data"]["path"] = str(tmp_path / "data")
    config = config_file.parse({**tree, "run_dir": str(tmp_path / "run")}, "test")
    assert [ranks for ranks in range(1, 10) if cli_hosts._fits(config, ranks)] == [1, 2, 4], "micro_batch is 2 of 8"
