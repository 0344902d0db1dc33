"""``flashinfer-benchmark``, ``flashinfer_benchmark.py`` and ``flashinfer-perf bench``: measure cases."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Mapping, Sequence

from flashinfer_perf import __version__
from flashinfer_perf.core.arguments import values_of
from flashinfer_perf.core.case import Case, family_grammars, general_flags, line_grammar, make_case, routine_named
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.exit_status import FAILURE, INTERRUPTED, NOTHING_PARSED, SUCCESS
from flashinfer_perf.core.flags import build, specs_of
from flashinfer_perf.core.options import Options
from flashinfer_perf.core.routine import Routine
from flashinfer_perf.core.testlist import InvalidLine, UnreadableTestlist, parse_testlist, read_testlist
from flashinfer_perf.routines import all_routines
from flashinfer_perf.run.ranks import (
    FailedElsewhere,
    Ranks,
    SingleRank,
    agree,
    find_ranks,
    in_step,
    is_first_process,
    number_started,
)

OUTPUT_LOST = (errno.EPIPE, errno.ENOSPC)
"""Errors of standard output; those of result files and of backends do not come this far."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program with these arguments; its exit status."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    _escape_what_cannot_be_shown()
    try:
        return _dispatch(tokens, all_routines())
    except (InvalidInput, UnreadableTestlist) as error:
        if is_first_process():
            print(f"[ERROR] {error}", file=sys.stderr)
        return NOTHING_PARSED
    except FailedElsewhere as error:
        if is_first_process():
            print(f"[ERROR] {error}", file=sys.stderr)
        return NOTHING_PARSED
    except KeyboardInterrupt:  # before there was anything to record; afterwards the session sees to it
        print("[ERROR] Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno not in OUTPUT_LOST:
            raise
        return _without_output(error)


def _escape_what_cannot_be_shown() -> None:
    """No case is lost because a terminal's encoding lacks a character of its tag, or our ±."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _without_output(error: OSError) -> int:
    """Nobody reads on, as in ``... | head``, which is no reason to complain, or the disk is full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has somewhere to go
    if error.errno != errno.EPIPE:
        print(f"[ERROR] cannot write to standard output: {error.strerror}", file=sys.stderr)
    return FAILURE


NEEDS_NO_RANKS = {"-h", "--help", "--version", "--list", "--plan"}
"""What the first process does alone."""


def ranks_that_agree(tokens: list[str]) -> Ranks:
    """The group that this process belongs to, all of it started with the same arguments; no MPI for one process.

    Before they are understood: a rank that refused other arguments than the others' would leave those waiting.

    Raises:
        InvalidInput: when mpi4py is missing, or a rank was started with other arguments.
    """
    if number_started() == 1 or NEEDS_NO_RANKS.intersection(tokens):
        return SingleRank()
    ranks = find_ranks()
    agree(ranks, "flags", " ".join(tokens))
    return ranks


def _dispatch(tokens: list[str], routines: Mapping[str, Routine]) -> int:
    ranks = ranks_that_agree(tokens)
    run = run_options(tokens, routines)
    if (run.help or run.version or run.list or run.plan) and not is_first_process():
        return SUCCESS
    if run.version:
        print(f"flashinfer-perf {__version__}")
        return SUCCESS
    if run.help or not tokens:
        from flashinfer_perf.cli.help import print_help

        return print_help(run.routine, routines)
    if run.list:
        from flashinfer_perf.cli.list import print_list

        return print_list(routines, run.device, run.format)
    items = in_step(ranks, lambda: understand(tokens, run, routines))
    agree(ranks, "cases", [getattr(item, "repro_command", "") for item in items])
    if run.plan:
        from flashinfer_perf.cli.plan import print_plan

        return print_plan(items, run.format)
    from flashinfer_perf.cli.measure import measure_items

    return measure_items(items, run, routines, ranks)


def run_options(tokens: Sequence[str], routines: Mapping[str, Routine]) -> Options:
    """The general options of a command line, those of the run as a whole among them.

    Raises:
        InvalidInput: when a value is wrong, or an abbreviation is ambiguous.
    """
    specs = specs_of(Options)
    typed, _ = general_flags(tokens, routines)
    options = build(Options, {}, values_of(typed, specs))
    if options.testlist is not None or options.routine not in routines:
        return options
    every, _ = line_grammar(routines[options.routine].flags).parse_known(tokens)
    return build(Options, {}, values_of([flag for flag in every if flag.name in specs], specs))


def understand(tokens: list[str], run: Options, routines: Mapping[str, Routine]) -> list[Case | InvalidLine]:
    """The cases of a command line: its own, or those of its testlist.

    Raises:
        InvalidInput: when the command line itself is wrong, or the testlist holds no case.
    """
    if run.testlist is None:
        routine = routine_named(run.routine, routines)
        return [make_case(routine, line_grammar(routine.flags).parse(tokens, family_grammars(routines)))]
    items = parse_testlist(read_testlist(run.testlist), run.testlist, tokens, routines)
    if not items:
        raise InvalidInput(f"testlist {run.testlist} holds no test case")
    return items
