from __future__ import annotations

import pytest

from data_pipeline.installed_docs import ReadCounts, describe_installed_docs, read_installed_docs
from data_pipeline.sources import describe_source

LONG = "Explains at length what this does and why anybody would want it. " * 5
MODULE = f'''"""The module.

{LONG}
"""
raise RuntimeError("documentation is read, never imported")

class Widget:
    """A widget.

    Example:
        Indented more.
    """

    def turn(self):
        """Turns it."""

if True:
    def late(): "Defined late."

add_docstr(Widget.spin, """
spin(speed)

    Spins.""")
'''


@pytest.fixture
def site_packages(tmp_path):
    root = tmp_path / "site-packages"
    files = {
        "pack/__init__.py": f'"""Package. {LONG}"""',
        "pack/module.py": MODULE,
        "pack/small.py": '"""Tiny."""',
        "pack/plain.py": "x = 1\n" * 100,
        "pack/broken.py": f'def (:\n"""{LONG}"""',
        "pack/tests/test_it.py": f'"""{LONG}"""',
        "pack/guide.rst": f"Guide\n=====\n\n{LONG}",
        "pack/LICENSE.txt": LONG,
        "pack/words.txt": "word\n" * 100_000,
        "pack/latin.md": b"\xe9" * 300,
        "pack-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: pack\n\n# Pack\n\n{LONG}",
        "pack-1.0.dist-info/top_level.txt": "pack\n" * 100,
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def test_reads_documentation_and_nothing_else(site_packages):
    counts = ReadCounts()
    documents = list(read_installed_docs([site_packages], counts))
    found = {d.id: d.text for d in documents}
    assert [d.id for d in documents] == [
        "pack-1.0.dist-info/METADATA",
        "pack/__init__.py",
        "pack/guide.rst",
        "pack/module.py",
    ]
    assert found["pack-1.0.dist-info/METADATA"].startswith("# Pack")
    assert found["pack/__init__.py"].startswith("pack\n\nPackage. ")
    assert (counts.modules, counts.text_files, counts.unparsable) == (2, 2, 2)


def test_docstrings_are_headed_dedented_and_in_order(site_packages):
    text = next(d.text for d in read_installed_docs([site_packages]) if d.id == "pack/module.py")
    sections = text.split("\n\n\n")
    assert [section.splitlines()[0] for section in sections] == [
        "pack.module",
        "pack.module.Widget",
        "pack.module.Widget.turn",
        "pack.module.late",
        "Widget.spin",
    ]
    assert sections[1] == "pack.module.Widget\n\nA widget.\n\nExample:\n    Indented more."
    assert sections[4].startswith("Widget.spin\n\nspin(speed)")


def test_order_is_that_of_the_paths(site_packages):
    assert list(read_installed_docs([site_packages])) == list(read_installed_docs([site_packages]))


def test_description_lists_what_is_installed():
    described = describe_source("installed-docs")
    assert described == describe_installed_docs()
    assert "numpy" in {name for name, _ in described}
