"""``flashinfer-benchmark``, ``flashinfer_benchmark.py`` and ``flashinfer-perf bench``: measure cases."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from flashinfer_perf.core.arguments import Grammar, Typed, grammar_of, values_of
from flashinfer_perf.core.case import Case, line_grammar, make_case, routine_named
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.exit_status import NOTHING_PARSED
from flashinfer_perf.core.flags import build, specs_of
from flashinfer_perf.core.options import Options
from flashinfer_perf.core.routine import Routine
from flashinfer_perf.core.testlist import InvalidLine, UnreadableTestlist, parse_testlist, read_testlist
from flashinfer_perf.routines import all_routines


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program with these arguments; its exit status."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(tokens, all_routines())
    except (InvalidInput, UnreadableTestlist) as error:
        print(f"[ERROR] {error}", file=sys.stderr)
        return NOTHING_PARSED


def _dispatch(tokens: list[str], routines: Mapping[str, Routine]) -> int:
    run = run_options(tokens)
    if run.help or not tokens:
        from flashinfer_perf.cli.help import print_help

        return print_help(run.routine, routines)
    if run.list:
        from flashinfer_perf.cli.list import print_list

        return print_list(routines, run.device, run.format)
    items = understand(tokens, run, routines)
    if run.plan:
        from flashinfer_perf.cli.plan import print_plan

        return print_plan(items, run.format)
    from flashinfer_perf.cli.measure import measure_items

    return measure_items(items, run, routines)


def run_options(tokens: Sequence[str]) -> Options:
    """The options of the run as a whole; what they do not know is a family's.

    Raises:
        InvalidInput: when a value is wrong.
    """
    specs = specs_of(Options)
    typed, _ = _general_grammar().parse_known(tokens)
    return build(Options, {}, values_of(typed, specs))


def understand(tokens: list[str], run: Options, routines: Mapping[str, Routine]) -> list[Case | InvalidLine]:
    """The cases of a command line: its own, or those of its testlist.

    Raises:
        InvalidInput: when the command line itself is wrong, or the testlist holds no case.
    """
    if run.testlist is None:
        routine = routine_named(run.routine, routines)
        return [make_case(routine, line_grammar(routine.flags).parse(tokens))]
    items = parse_testlist(read_testlist(run.testlist), run.testlist, _beside(tokens), routines)
    if not items:
        raise InvalidInput(f"testlist {run.testlist} holds no test case")
    return items


def _beside(tokens: Sequence[str]) -> list[str]:
    """The command line without the flags that are the run's own."""
    specs = specs_of(Options)
    typed, rest = _general_grammar().parse_known(tokens)
    return [token for flag in typed if not specs[flag.name].per_process for token in _as_typed(flag)] + rest


def _as_typed(flag: Typed) -> Sequence[str]:
    return flag.tokens


def _general_grammar() -> Grammar:
    return grammar_of(*specs_of(Options).values())
