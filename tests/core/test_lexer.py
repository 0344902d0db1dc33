from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.core.lexer import LogicalLine, Word, split_lines


def only(text: str) -> LogicalLine:
    (line,) = split_lines(text)
    assert not line.error
    return line


def words(text: str) -> list[str]:
    return [word.text for word in only(text).words]


def test_words_are_separated_by_blanks_and_tabs():
    assert words("  --m   16\t--k 32  ") == ["--m", "16", "--k", "32"]


def test_blank_lines_and_comments_leave_nothing():
    assert split_lines("\n  \n# a comment\n   # indented\n\t\n") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--m 16 # trailing", ["--m", "16"]),
        ("--m 16 #trailing --k 32", ["--m", "16"]),
        ("--case_tag run#1", ["--case_tag", "run#1"]),
        ("--case_tag run#1 # and why", ["--case_tag", "run#1"]),
        ("--case_tag '# literal'", ["--case_tag", "# literal"]),
        ('--case_tag "# literal"', ["--case_tag", "# literal"]),
        (r"--case_tag \#1", ["--case_tag", "#1"]),
        ("--case_tag ''#1", ["--case_tag", "#1"]),
        ("--m 16 # it's not a quote", ["--m", "16"]),
        ("--m 16 # ends in a backslash \\\n", ["--m", "16"]),
    ],
)
def test_a_hash_is_a_comment_only_at_the_start_of_a_word_outside_quotes(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'a b'", "a b"),
        ('"a b"', "a b"),
        ("a' 'b", "a b"),
        ('"it\'s"', "it's"),
        ("'say \"hi\"'", 'say "hi"'),
        (r'"say \"hi\""', 'say "hi"'),
        (r'"back\\slash"', r"back\slash"),
        (r'"other \n escapes"', r"other \n escapes"),
        (r"'no \escapes\'", "no \\escapes\\"),
        (r"a\ b", "a b"),
        (r"\'", "'"),
        ("''", ""),
        ('""', ""),
    ],
)
def test_quotes_and_backslashes_are_a_shells(text, expected):
    assert only(text).words == [Word(expected, quoted=True)]


@pytest.mark.parametrize(
    ("text", "quoted"), [("{1,2}", False), ("'{1,2}'", True), ('"{1,2}"', True), (r"\{1,2}", True), ("{1','2}", True)]
)
def test_it_is_remembered_what_was_quoted(text, quoted):
    assert only(text).words == [Word("{1,2}", quoted)]


def test_a_backslash_at_the_end_of_a_line_continues_it():
    first, second = split_lines("--m 1 \\\n  --k 2 \\\n  --refcheck\n--m 3\n")
    assert [word.text for word in first.words] == ["--m", "1", "--k", "2", "--refcheck"]
    assert (first.number, second.number) == (1, 4)
    assert [word.text for word in second.words] == ["--m", "3"]


def test_a_continuation_in_the_middle_of_a_word_goes_on_with_it():
    assert words("--m 1\\\n --k 2") == ["--m", "1", "--k", "2"]
    assert words("--case_tag a\\\nb") == ["--case_tag", "ab"]
    assert only("--case_tag a\\\nb").text == "--case_tag ab"


def test_a_comment_on_a_continued_line_ends_it():
    first, second = split_lines("--m 1 \\\n# why\n--k 2")
    assert ([word.text for word in first.words], second.number) == (["--m", "1"], 3)


def test_a_continuation_of_nothing_is_nothing():
    assert words("--m 1 \\") == ["--m", "1"]
    assert words("--m 1 \\\n") == ["--m", "1"]
    assert words("--m 1\\") == ["--m", "1"]


def test_double_quotes_go_on_over_a_continuation():
    line = only('--case_tag "a \\\nb"')
    assert line.words[1].text == "a b"


def test_windows_line_ends_and_a_byte_order_mark_are_no_words():
    first, second = split_lines("\ufeff--m 1 \\\r\n --k 2\r\n\r\n--m 3\r\n")
    assert [word.text for word in first.words] == ["--m", "1", "--k", "2"]
    assert [word.text for word in second.words] == ["--m", "3"]
    assert second.number == 4


def test_a_byte_order_mark_before_a_comment_is_no_word():
    assert split_lines("\ufeff# comment\n") == []


@pytest.mark.parametrize("quote", ["'", '"'])
def test_an_unterminated_quote_spoils_only_its_own_line(quote):
    before, spoilt, after = split_lines(f"--m 1\n--case_tag {quote}oops --k 2\n\n--m 3\n")
    assert spoilt.error == f"no closing {quote}"
    assert spoilt.text == f"--case_tag {quote}oops --k 2"
    assert (before.number, spoilt.number, after.number) == (1, 2, 4)
    assert [word.text for word in after.words] == ["--m", "3"]
    assert not before.error
    assert not after.error


def test_an_unterminated_quote_in_the_last_line_needs_no_line_end():
    (line,) = split_lines("--case_tag 'oops")
    assert line.error == "no closing '"


def test_an_unterminated_quote_after_a_continuation_counts_its_lines():
    spoilt, after = split_lines('--m 1 \\\n--case_tag "a \\\nb\n--m 2')
    assert (spoilt.number, bool(spoilt.error)) == (1, True)
    assert (after.number, after.error) == (4, "")


def test_the_text_of_a_line_is_what_was_written_on_one_line():
    assert only("--m 1 \\\n   --case_tag  'a b'  # why").text == "--m 1 --case_tag 'a b' # why"


def test_line_numbers_count_physical_lines():
    text = "# one\n\n--m 3\n--m 4 \\\n--k 5\n'oops\n--m 7"
    assert [line.number for line in split_lines(text)] == [3, 4, 6, 7]


ANY_WORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff"))
AWKWARD_WORD = st.text("ab -#\"'\\{},=$\t*é中")


@given(st.lists(st.lists(ANY_WORD | AWKWARD_WORD, min_size=1), max_size=4))
def test_what_a_shell_would_quote_reads_back_the_same(lines):
    text = "\n".join(shlex.join(line) for line in lines)
    assert [[word.text for word in line.words] for line in split_lines(text)] == lines


@given(st.text("a #'\"\\\n\r{}\t\ufeff"))
def test_any_text_is_read_to_its_end_with_ascending_line_numbers(text):
    numbers = [line.number for line in split_lines(text)]
    assert numbers == sorted(set(numbers))
    assert all(1 <= number <= text.count("\n") + 1 for number in numbers)


@given(st.lists(st.sampled_from(["--m 1", "'oops", '"oops', "# it's", "", "a\\'b", '"a \\" b"'])))
def test_every_line_is_found_under_its_own_number(lines):
    found = split_lines("\n".join(lines))
    expected = [number for number, line in enumerate(lines, 1) if line not in ("", "# it's")]
    assert [line.number for line in found] == expected
    assert [bool(line.error) for line in found] == [lines[number - 1].endswith("oops") for number in expected]
