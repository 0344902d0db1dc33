"""Testlists: many cases in a file, one to a line, all understood before any runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flashinfer_perf.core.arguments import Typed, merge
from flashinfer_perf.core.case import (
    Case,
    common_grammar,
    family_grammars,
    general_flags,
    line_grammar,
    make_case,
    routine_name,
    routine_named,
)
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.flags import specs_of
from flashinfer_perf.core.lexer import LogicalLine, split_lines
from flashinfer_perf.core.options import Options
from flashinfer_perf.core.routine import Routine
from flashinfer_perf.core.sweep import expand


@dataclass(frozen=True)
class InvalidLine:
    """A line that could not be understood, and why."""

    text: str
    reason: str
    origin: str
    routine: str = ""


class UnreadableTestlist(Exception):
    """The file as a whole cannot be read; nothing can be run."""


def read_testlist(path: str) -> str:
    """The text of a testlist; '-' is standard input.

    Raises:
        UnreadableTestlist: when it is missing, a folder, or not UTF-8.
    """
    try:
        raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UnreadableTestlist(f"cannot read testlist {path}: {error.strerror}") from None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UnreadableTestlist(
            f"testlist {path} is not UTF-8: byte 0x{raw[error.start]:02x} in line {line}; save it as UTF-8"
        ) from None


def parse_testlist(
    text: str, path: str, beside: Sequence[str], routines: Mapping[str, Routine]
) -> list[Case | InvalidLine]:
    """Every case of a testlist, sweeps expanded, in order.

    Args:
        beside: the command line's own tokens; they are defaults for every line.

    Raises:
        InvalidInput: when those tokens hold a flag that no routine has, or a stray word.
    """
    reader = _Reader(path, beside, routines)
    return [item for line in split_lines(text) for item in reader.items(line)]


class _Reader:
    def __init__(self, path: str, beside: Sequence[str], routines: Mapping[str, Routine]) -> None:
        self._path = path
        self._beside = _without_run_flags(beside, routines)
        self._routines = routines
        self._families = family_grammars(routines)
        self._defaults: dict[type, list[Typed]] = {}
        common_grammar(routines).parse(self._beside)  # refuses what no family can make anything of
        self._routine_beside = routine_name(self._beside)

    def items(self, line: LogicalLine) -> list[Case | InvalidLine]:
        """The cases of one line, or what is wrong with it."""
        origin = f"{self._path}:{line.number}"
        if line.error:
            return [InvalidLine(line.text, line.error, origin)]
        try:
            sweeps = expand(line.words)
        except InvalidInput as error:
            return [InvalidLine(line.text, str(error), origin)]
        return [self._case(tokens, line.text, origin) for tokens in sweeps]

    def _case(self, tokens: Sequence[str], text: str, origin: str) -> Case | InvalidLine:
        name = ""
        try:
            name = routine_name(tokens) or self._routine_beside or ""
            routine = routine_named(name or None, self._routines)
            typed = line_grammar(routine.flags).parse(tokens, self._families)
            _refuse_run_flags(typed)
            return make_case(routine, merge(self._defaults_for(routine.flags), typed), origin)
        except InvalidInput as error:
            return InvalidLine(text, str(error), origin, name if name in self._routines else "")

    def _defaults_for(self, flags: type) -> list[Typed]:
        """What stands beside the testlist, for a line of this family; flags of other families do not concern it."""
        if flags not in self._defaults:
            self._defaults[flags], _ = line_grammar(flags).parse_known(self._beside, self._families)
        return self._defaults[flags]


def _without_run_flags(tokens: Sequence[str], routines: Mapping[str, Routine]) -> list[str]:
    """A command line without what concerns the run as a whole."""
    typed, rest = general_flags(tokens, routines)
    specs = specs_of(Options)
    return [token for flag in typed if not specs[flag.name].per_process for token in flag.tokens] + rest


def _refuse_run_flags(typed: Iterable[Typed]) -> None:
    """A list inside a list, or a request for help, is no test case."""
    for flag in typed:
        if flag.name in ("help", "version", "list", "plan", "testlist"):
            raise InvalidInput(f"{flag.option} belongs on the command line, not in a testlist")
