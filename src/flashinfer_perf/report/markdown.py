"""Markdown tables, and files of which parts are generated."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; bars inside cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def replace_sections(document: str, sections: Mapping[str, str]) -> str:
    """The document with the text between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` replaced.

    Raises:
        ValueError: when a section has no place in the document, or a place has no section.
    """
    places = re.findall(r"<!-- begin (\S+) -->", document)
    if sorted(places) != sorted(sections):
        raise ValueError(f"sections {sorted(sections)} do not match the places {sorted(places)}")
    for name, text in sections.items():
        marks = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
        document = re.sub(marks, lambda found, text=text: f"{found[1]}{text}\n{found[2]}", document, flags=re.DOTALL)
    return document
