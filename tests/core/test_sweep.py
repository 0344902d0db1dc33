from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.core import sweep
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.lexer import Word, split_lines
from flashinfer_perf.core.sweep import MAX_CASES, expand


def expanded(line: str) -> list[str]:
    (logical,) = split_lines(line)
    return [" ".join(tokens) for tokens in expand(logical.words)]


def test_a_line_without_braces_is_one_case():
    assert expanded("--m 1 --k 2") == ["--m 1 --k 2"]


def test_braces_become_the_cross_product_with_the_last_varying_fastest():
    assert expanded("--m {1,16} --k 32 --n {4,8,x}") == [
        "--m 1 --k 32 --n 4",
        "--m 1 --k 32 --n 8",
        "--m 1 --k 32 --n x",
        "--m 16 --k 32 --n 4",
        "--m 16 --k 32 --n 8",
        "--m 16 --k 32 --n x",
    ]


def test_flags_themselves_can_be_swept():
    assert expanded("{--refcheck,--no-refcheck} -n 5") == ["--refcheck -n 5", "--no-refcheck -n 5"]


def test_one_value_in_braces_is_that_value():
    assert expanded("--m {7}") == ["--m 7"]


@pytest.mark.parametrize("word", ["'{1,2}'", '"{1,2}"', r"\{1,2}"])
def test_quoted_braces_are_literal(word):
    assert expanded(f"--case_tag {word}") == ["--case_tag {1,2}"]


@pytest.mark.parametrize("word", ["a{1,2}", "{1,2}b", "--m={1,2}", "{1", "2}", "1,2"])
def test_only_a_whole_word_in_braces_is_a_sweep(word):
    assert expanded(word) == [word]


@pytest.mark.parametrize("word", ["{}", "{1,}", "{,1}", "{1,,2}", "{,}"])
def test_an_empty_value_is_refused_with_the_sweep_named(word):
    with pytest.raises(InvalidInput, match="empty value in the sweep") as caught:
        expanded(f"--m {word}")
    assert word in str(caught.value)


def test_too_many_cases_are_refused_before_they_are_made():
    axis = Word("{" + ",".join(map(str, range(1000))) + "}")
    with pytest.raises(InvalidInput, match=rf"^this sweep has {1000**5} cases; {MAX_CASES} at most$"):
        expand([axis] * 5)


def test_the_limit_itself_is_allowed(monkeypatch):
    monkeypatch.setattr(sweep, "MAX_CASES", 6)
    assert len(expanded("{1,2} {1,2,3}")) == 6
    with pytest.raises(InvalidInput):
        expanded("{1,2} {1,2} {1,2}")


@given(st.lists(st.lists(st.text("ab1", min_size=1), min_size=1, max_size=3), max_size=4))
def test_every_combination_appears_in_its_place(axes):
    cases = expand([Word("{" + ",".join(axis) + "}") for axis in axes])
    for index, case in enumerate(cases):
        for axis, value in zip(reversed(axes), reversed(case), strict=True):
            index, position = divmod(index, len(axis))
            assert value == axis[position]
        assert index == 0
