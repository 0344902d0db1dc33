from __future__ import annotations

import gc
import os
import warnings
from pathlib import Path

import pytest

from flashinfer_perf.run.session import SinkFailed
from flashinfer_perf.sinks.result_file import ResultFile


def test_the_folder_is_made(tmp_path: Path):
    path = tmp_path / "a" / "b" / "o.csv"
    file = ResultFile(str(path), append=False)
    file.check()
    assert path.parent.is_dir()
    assert not path.exists()
    file.write("x\n")
    assert path.read_text() == "x\n"
    file.close()


def test_a_bare_name_lies_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    file = ResultFile("o.csv", append=False)
    file.check()
    file.write("x\n")
    file.close()
    assert (tmp_path / "o.csv").read_text() == "x\n"


def test_every_line_is_there_as_soon_as_it_is_written(tmp_path: Path):
    file = ResultFile(str(tmp_path / "o.csv"), append=False)
    for number in range(3):
        file.write(f"{number}\n")
        assert (tmp_path / "o.csv").read_text().splitlines() == [str(n) for n in range(number + 1)]
    file.close()


@pytest.mark.parametrize(
    ("name", "older"), [("o.csv", "o.1.csv"), ("results", "results.1"), ("a.b.jsonl", "a.b.1.jsonl")]
)
def test_an_older_file_keeps_its_ending(name: str, older: str, tmp_path: Path):
    (tmp_path / name).write_text("older\n")
    file = ResultFile(str(tmp_path / name), append=False)
    file.write("newer\n")
    file.close()
    assert (tmp_path / older).read_text() == "older\n"
    assert (tmp_path / name).read_text() == "newer\n"


def test_a_path_below_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "o.csv", tmp_path / "file" / "folder" / "o.csv"):
        with pytest.raises(SinkFailed, match=f"cannot write results to {path}: its folder is a file"):
            ResultFile(str(path), append=False).check()


def test_a_folder_is_refused(tmp_path: Path):
    with pytest.raises(SinkFailed, match=f"cannot write results to {tmp_path}: it is a folder"):
        ResultFile(str(tmp_path), append=False).check()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(SinkFailed, match="permission denied"):
        ResultFile(str(tmp_path / "o.csv"), append=False).check()


def test_missing_permission_is_found_out_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever runs the tests: root may write anywhere."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SinkFailed, match=r"o\.csv: permission denied"):
        ResultFile(str(tmp_path / "o.csv"), append=False).check()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(SinkFailed, match="Permission denied"):
        ResultFile(str(tmp_path / "a" / "o.csv"), append=False).check()


def test_a_disk_that_is_full_fails_the_write_and_leaves_nothing_behind(recwarn: pytest.WarningsRecorder):
    """The text that could not be written must not come back when the file is collected."""
    file = ResultFile("/dev/full", append=True)
    file.check()
    with pytest.raises(SinkFailed, match="No space left"):
        file.write("x\n")
    assert file._file is None
    file.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del file
        gc.collect()


def test_devices_are_written_to_and_not_moved():
    file = ResultFile("/dev/null", append=False)
    file.check()
    file.write("x\n")
    file.close()
    assert Path("/dev/null").is_char_device()


def test_closing_twice_is_closing_once(tmp_path: Path):
    file = ResultFile(str(tmp_path / "o.csv"), append=False)
    file.close()
    file.write("x\n")
    file.close()
    file.close()


def test_the_first_line_is_of_a_file_to_append_to(tmp_path: Path):
    path = tmp_path / "o.csv"
    assert ResultFile(str(path), append=True).first_line() is None
    path.write_text("a,b\r\n1,2\r\n")
    assert ResultFile(str(path), append=True).first_line() == "a,b"
    assert ResultFile(str(path), append=False).first_line() is None


@pytest.mark.parametrize(("before", "after"), [("a\nhalf", "a\nhalf\nb\n"), ("a\n", "a\nb\n"), ("", "b\n")])
def test_appending_begins_on_a_line_of_its_own(before: str, after: str, tmp_path: Path):
    path = tmp_path / "o.csv"
    path.write_text(before)
    file = ResultFile(str(path), append=True)
    file.write("b\n")
    file.close()
    assert path.read_text() == after
