from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.core.record import Status
from flashinfer_perf.run.events import Message, Severity
from flashinfer_perf.run.session import SinkFailed
from flashinfer_perf.sinks.csv_file import CsvFile
from tests.fakes import measurement, record

COLUMNS = ("routine", "median_time", "backend", "case_tag", "status", "reason")


def write(path: Path, *records: object, append: bool = False, columns: tuple[str, ...] = COLUMNS) -> None:
    sink = CsvFile(str(path), columns, append)
    for item in records:
        sink.take(item)  # type: ignore[arg-type]
    sink.close()


def tagged(tag: str | None = None, **changes: object) -> object:
    return record(options={"case_tag": tag}, **changes)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_row_per_record_under_the_header(tmp_path: Path):
    path = tmp_path / "o.csv"
    write(path, tagged("x"), record(status=Status.UNSUPPORTED, reason="no GPU", measurement=None))
    assert path.read_text() == (
        "routine,median_time,backend,case_tag,status,reason\nfake,0.5,torch,x,ok,\nfake,,torch,,unsupported,no GPU\n"
    )


def test_numbers_keep_all_their_digits(tmp_path: Path):
    path = tmp_path / "o.csv"
    write(path, record(measurement=measurement(1 / 3)))
    assert float(rows(path)[0]["median_time"]) == 1 / 3


@pytest.mark.parametrize("tag", ["a,b", 'say "x"', "two\nlines", "carriage\r\nreturn", " spaces ", "größe µs", "'", ""])
def test_whatever_stands_in_a_cell_comes_back(tag: str, tmp_path: Path):
    path = tmp_path / "o.csv"
    write(path, tagged(tag), tagged("next"))
    assert [(row["case_tag"], row["status"]) for row in rows(path)] == [(tag, "ok"), ("next", "ok")]


@given(tag=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_any_text_comes_back(tag: str, tmp_path: Path):
    path = tmp_path / "o.csv"
    path.unlink(missing_ok=True)
    write(path, tagged(tag))
    assert rows(path)[0]["case_tag"] == tag


def test_a_tag_that_is_no_text_costs_no_run(tmp_path: Path):
    """An argument that is not UTF-8 reaches Python as lone surrogates."""
    path = tmp_path / "o.csv"
    write(path, tagged("caf\udce9"), tagged("next"))
    assert [row["case_tag"] for row in rows(path)] == ["caf\\udce9", "next"]


def test_messages_are_not_written(tmp_path: Path):
    path = tmp_path / "o.csv"
    write(path, Message(Severity.ERROR, "x"))
    assert not path.exists()


# ---- what was there before ----


def test_the_file_is_made_when_the_first_row_is_ready(tmp_path: Path):
    """A run that cannot start, or ends before anything is measured, leaves an older file where it is."""
    path = tmp_path / "o.csv"
    path.write_text("older\n")
    sink = CsvFile(str(path), COLUMNS)
    assert path.read_text() == "older\n"
    assert list(tmp_path.iterdir()) == [path]
    sink.take(tagged())  # type: ignore[arg-type]
    assert (tmp_path / "o.1.csv").read_text() == "older\n"
    assert len(rows(path)) == 1  # there before the run is over
    sink.close()


def test_older_files_are_kept_under_the_next_free_number(tmp_path: Path):
    path = tmp_path / "o.csv"
    for tag in ("first", "second", "third"):
        write(path, tagged(tag))
    assert [rows(tmp_path / name)[0]["case_tag"] for name in ("o.1.csv", "o.2.csv", "o.csv")] == [
        "first",
        "second",
        "third",
    ]


def test_a_number_that_is_taken_is_not_overwritten(tmp_path: Path):
    path = tmp_path / "o.csv"
    (tmp_path / "o.1.csv").write_text("somebody else's\n")
    for _ in range(2):
        write(path, tagged())
    assert (tmp_path / "o.1.csv").read_text() == "somebody else's\n"
    assert len(rows(tmp_path / "o.2.csv")) == 1


def test_two_rows_of_one_run_are_in_one_file(tmp_path: Path):
    write(tmp_path / "o.csv", tagged("a"), tagged("b"))
    assert [path.name for path in tmp_path.iterdir()] == ["o.csv"]


# ---- --append ----


def test_rows_are_added_below_an_equal_header(tmp_path: Path):
    path = tmp_path / "o.csv"
    write(path, tagged("a"))
    write(path, tagged("b"), append=True)
    write(path, tagged("c"), tagged("d"), append=True)
    assert [row["case_tag"] for row in rows(path)] == ["a", "b", "c", "d"]
    assert path.read_text().count("median_time") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["o.csv"]


@pytest.mark.parametrize("content", [None, ""])
def test_there_may_be_nothing_to_append_to(content: str | None, tmp_path: Path):
    path = tmp_path / "o.csv"
    if content is not None:
        path.write_text(content)
    write(path, tagged("a"), append=True)
    assert [row["case_tag"] for row in rows(path)] == ["a"]


def test_a_header_written_elsewhere_with_other_line_ends_is_equal(tmp_path: Path):
    path = tmp_path / "o.csv"
    path.write_bytes(",".join(COLUMNS).encode() + b"\r\n")
    write(path, tagged("a"), append=True)
    assert [row["case_tag"] for row in rows(path)] == ["a"]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("routine,median_time,backend", "lacks case_tag, status, reason"),
        (",".join([*COLUMNS, "more"]), "has more"),
        ("a,b", "lacks routine, median_time, backend; has a, b"),
        (",".join(reversed(COLUMNS)), "another order"),
    ],
)
def test_another_header_is_refused_before_anything_is_measured(header: str, said: str, tmp_path: Path):
    path = tmp_path / "o.csv"
    path.write_text(f"{header}\n1,2\n")
    with pytest.raises(SinkFailed, match="its header is another one") as caught:
        CsvFile(str(path), COLUMNS, append=True)
    assert said in str(caught.value)
    assert "--output_path" in str(caught.value)
    assert path.read_text() == f"{header}\n1,2\n"


def test_a_file_that_is_no_text_is_refused(tmp_path: Path):
    path = tmp_path / "o.csv"
    path.write_bytes(b"\xff\xfe\x00binary\n")
    with pytest.raises(SinkFailed, match="its header is another one"):
        CsvFile(str(path), COLUMNS, append=True)


def test_a_row_that_an_earlier_run_left_unfinished_is_not_continued(tmp_path: Path):
    """It was killed, or its disk was full."""
    path = tmp_path / "o.csv"
    write(path, tagged("a"))
    with path.open("a") as file:
        file.write("fake,0.5,tor")
    write(path, tagged("b"), append=True)
    assert [row["case_tag"] for row in rows(path)] == ["a", None, "b"]


# ---- what cannot be written ----


def test_a_full_disk_fails_the_sink_and_says_what_becomes_of_the_run():
    sink = CsvFile("/dev/full", COLUMNS)
    with pytest.raises(SinkFailed, match=r"cannot write results to /dev/full: .*No space.*The run goes on without"):
        sink.take(tagged())  # type: ignore[arg-type]
    sink.close()
