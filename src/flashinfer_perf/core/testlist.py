"""Testlists: many cases in a file, one to a line, all understood before any runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flashinfer_perf.core.arguments import Typed, grammar_of, merge, not_a_choice_of_flags
from flashinfer_perf.core.case import Case, line_grammar, make_case, routine_named
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
        InvalidInput: when those tokens hold a flag that no routine has.
    """
    reader = _Reader(path, beside, routines)
    return [item for line in split_lines(text) for item in reader.items(line)]


class _Reader:
    def __init__(self, path: str, beside: Sequence[str], routines: Mapping[str, Routine]) -> None:
        self._path = path
        self._beside = list(beside)
        self._routines = routines
        self._defaults: dict[type, list[Typed]] = {}
        self._check_beside()

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
            name = _routine_name(tokens) or _routine_name(self._beside) or ""
            routine = routine_named(name or None, self._routines)
            typed = line_grammar(routine.flags).parse(tokens)
            _refuse_run_flags(typed)
            return make_case(routine, merge(self._defaults_for(routine.flags), typed), origin)
        except InvalidInput as error:
            return InvalidLine(text, str(error), origin, name if name in self._routines else "")

    def _defaults_for(self, flags: type) -> list[Typed]:
        """What stands beside the testlist, for a line of this family; flags of other families do not concern it."""
        if flags not in self._defaults:
            typed, _ = line_grammar(flags).parse_known(self._beside)
            run_flags = {name for name, spec in specs_of(Options).items() if spec.per_process}
            self._defaults[flags] = [flag for flag in typed if flag.name not in run_flags]
        return self._defaults[flags]

    def _check_beside(self) -> None:
        grammars = [line_grammar(flags) for flags in dict.fromkeys(r.flags for r in self._routines.values())]
        options = [token for token in self._beside if token.startswith("--")]
        for option in options:
            if not any(grammar.knows(option) for grammar in grammars):
                known = [name for grammar in grammars for spec in grammar.specs.values() for name in spec.options]
                raise InvalidInput(not_a_choice_of_flags(option.partition("=")[0], known))


def _refuse_run_flags(typed: Iterable[Typed]) -> None:
    """A list inside a list, or a request for help, is no test case."""
    for flag in typed:
        if flag.name in ("help", "list", "plan", "testlist"):
            raise InvalidInput(f"{flag.option} belongs on the command line, not in a testlist")


def _routine_name(tokens: Sequence[str]) -> str | None:
    """The last --routine among tokens of a family that is not known yet."""
    typed, _ = grammar_of(*specs_of(Options).values()).parse_known(tokens)
    names = [flag.values[0] for flag in typed if flag.name == "routine"]
    return names[-1] if names else None
