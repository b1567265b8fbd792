from __future__ import annotations

import pytest

from pretrain.errors import RunError
from pretrain.markdown import check_section, write_section


def test_only_what_stands_between_the_markers_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- a: begin -->\nold\n<!-- a: end -->\n\n<!-- b: begin -->\nkept\n<!-- b: end -->\n")
    check_section(page, "a")
    write_section(page, "a", "| new |\n")
    write_section(page, "a", "| newer |\n")
    assert page.read_text() == (
        "# Title\n\n<!-- a: begin -->\n\n| newer |\n\n<!-- a: end -->\n\n<!-- b: begin -->\nkept\n<!-- b: end -->\n"
    )


@pytest.mark.parametrize("text", ["", "<!-- a: begin -->", "<!-- a: end --><!-- a: begin -->", None])
def test_a_page_without_the_markers_is_left_alone(tmp_path, text):
    page = tmp_path / "page.md"
    if text is not None:
        page.write_text(text)
    with pytest.raises(RunError, match=r"page\.md"):
        write_section(page, "a", "new")
    with pytest.raises(RunError, match=r"page\.md"):
        check_section(page, "a")
    assert text is None or page.read_text() == text
