from __future__ import annotations

import pytest

from flashinfer_perf.core.listing import listed


@pytest.mark.parametrize(
    ("names", "text"), [("", ""), ("a", "a"), ("ab", "a or b"), ("abc", "a, b or c"), ("abcd", "a, b, c or d")]
)
def test_the_conjunction_stands_before_the_last_name(names, text):
    assert listed(list(names), "or") == text
