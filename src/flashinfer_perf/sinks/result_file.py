"""A file that results go to, line by line: opened with the first, never overwriting an older one."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path
from typing import TextIO

from flashinfer_perf.run.session import SinkFailed


class ResultFile:
    """Opened when the first line is ready; each line is flushed.

    Raises SinkFailed from ``write`` when the disk is full or the file cannot be written.
    """

    def __init__(self, path: str, append: bool) -> None:
        self.path = Path(path)
        self._append = append
        self._file: TextIO | None = None

    def first_line(self) -> str | None:
        """The first line of the file that is to be appended to; None when there is nothing to append to."""
        if not (self._append and self.path.is_file() and self.path.stat().st_size):
            return None
        with self.path.open(encoding="utf-8", errors="replace", newline="") as file:
            return file.readline().rstrip("\r\n")

    def check(self) -> None:
        """Raises SinkFailed when the file cannot be made, before anything is measured for it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            existing = self.path if self.path.exists() else self.path.parent
            if self.path.is_dir() or not os.access(existing, os.W_OK):
                reason = "it is a folder" if self.path.is_dir() else "permission denied"
                raise SinkFailed(f"cannot write results to {self.path}: {reason}")
        except (FileExistsError, NotADirectoryError):
            raise SinkFailed(f"cannot write results to {self.path}: its folder is a file") from None
        except OSError as error:
            raise SinkFailed(f"cannot write results to {self.path}: {error.strerror}") from None

    def write(self, text: str) -> None:
        try:
            if self._file is None:
                self._keep_older()
                text = self._end_of_last_line() + text
                self._file = self.path.open("a", encoding="utf-8", errors="backslashreplace", newline="")
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            with contextlib.suppress(SinkFailed):  # closing tries once more to write what is left
                self.close()
            raise SinkFailed(self._lost(error)) from None

    def close(self) -> None:
        file, self._file = self._file, None
        try:
            if file is not None:
                file.close()
        except OSError as error:
            raise SinkFailed(self._lost(error)) from None

    def _end_of_last_line(self) -> str:
        """What the file to append to lacks, if an earlier run ended in the middle of a line."""
        if not (self.path.is_file() and self.path.stat().st_size):
            return ""
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return "" if file.read() == b"\n" else "\n"

    def _keep_older(self) -> None:
        """An existing file is moved to NAME.1.csv, or the next number that is free."""
        if self._append or not self.path.is_file():
            return
        for number in itertools.count(1):
            older = self.path.with_name(f"{self.path.stem}.{number}{self.path.suffix}")
            if not older.exists():
                self.path.rename(older)
                return

    def _lost(self, error: OSError) -> str:
        return f"cannot write results to {self.path}: {error.strerror}. The run goes on without this file."
