"""Tables, and files of which parts are generated."""

from __future__ import annotations

import pytest

from flashinfer_perf.report.markdown import replace_sections, table

DOCUMENT = "before\n<!-- begin a -->\nold\n<!-- end a -->\nbetween\n<!-- begin b -->\n<!-- end b -->\nafter\n"


def test_a_table_has_a_header_a_rule_and_rows():
    assert table(("x", "y"), [("1", "2")]) == "| x | y |\n| --- | --- |\n| 1 | 2 |"


def test_bars_in_cells_are_escaped():
    assert table(("x",), [("auto|cpu",)]).endswith("| auto\\|cpu |")


def test_only_what_stands_between_the_marks_is_replaced():
    new = replace_sections(DOCUMENT, {"a": "A\nA", "b": r"\1 is literal"})
    first, second = "<!-- begin a -->\nA\nA\n<!-- end a -->", "<!-- begin b -->\n\\1 is literal\n<!-- end b -->"
    assert new == f"before\n{first}\nbetween\n{second}\nafter\n"
    assert replace_sections(new, {"a": "A\nA", "b": r"\1 is literal"}) == new


@pytest.mark.parametrize("sections", [{"a": ""}, {"a": "", "b": "", "c": ""}])
def test_a_section_without_a_place_or_a_place_without_a_section_is_an_error(sections: dict[str, str]):
    with pytest.raises(ValueError, match="do not match"):
        replace_sections(DOCUMENT, sections)
