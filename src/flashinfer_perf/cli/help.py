"""``--help``, derived from the flags."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Mapping

from flashinfer_perf.core.case import routine_named
from flashinfer_perf.core.flags import FlagSpec, specs_of
from flashinfer_perf.core.options import Options
from flashinfer_perf.core.routine import Backend, Routine

USAGE = "flashinfer_benchmark.py --routine NAME FLAGS… | --testlist FILE [FLAGS…] | --list | --routine NAME --help"
ABOUT = (
    "Measures and checks GPU kernels for LLM inference. Flags beside --testlist are defaults for all of its lines. "
    "A flag may be shortened to a prefix that is unique; a switch is turned off by its --no-… form."
)
EXITS = (
    "exit status: 0 when something was measured and everything is ok or unsupported; 1 otherwise; "
    "2 when nothing could be understood; 130 after Ctrl-C"
)

LAUNCHERS = ("mpirun -np N python3 ", "torchrun --nproc-per-node N ")
RANKS = (
    "N processes work together, each on a GPU of its own, or with --device cpu on the CPU.\n"
    "Started without a launcher, one process is all there is.\n"
    "mpirun needs mpi4py: pip install 'flashinfer-perf[mpi]'"
)


def print_help(name: str | None, routines: Mapping[str, Routine]) -> int:
    """The help of everything, or of one routine. Raises InvalidInput when there is no such routine."""
    sections = _everything(routines) if name is None else _one(routine_named(name, routines))
    print("\n".join(section.rstrip() + "\n" for section in sections), end="")
    return 0


def _everything(routines: Mapping[str, Routine]) -> Iterable[str]:
    yield paragraph(usage=USAGE, description=ABOUT)
    yield flag_section("general flags", specs_of(Options).values())
    for flags in dict.fromkeys(routine.flags for routine in routines.values()):
        members = [routine for routine in routines.values() if routine.flags is flags]
        listed = "\n".join(f"{routine.name}: {routine.summary}" for routine in members)
        yield flag_section(f"{members[0].family} flags", specs_of(flags).values(), listed)
    yield paragraph(usage=argparse.SUPPRESS, description=EXITS)


def _one(routine: Routine) -> Iterable[str]:
    yield _header(routine)
    yield flag_section(f"flags of {routine.name}", routine.specs.values())
    others = (spec for name, spec in specs_of(routine.flags).items() if name not in routine.specs)
    unread = [dataclasses.replace(spec, default=None) for spec in others]
    if unread:
        yield flag_section(f"accepted, but not read by {routine.name}", unread)
    backends = "\n".join(f"{b.name}: {b.summary} ({needs_of(b)})" for b in routine.backends.values())
    yield flag_section("backends, in order of preference", (), backends)
    yield flag_section("general flags", specs_of(Options).values())
    yield paragraph(usage=argparse.SUPPRESS, description=EXITS)


def _header(routine: Routine) -> str:
    """How to start it, and what it is."""
    command = f"flashinfer_benchmark.py --routine {routine.name} FLAGS…"
    if not routine.several_ranks:
        return paragraph(usage=command, description=routine.summary)
    usage = "\n       ".join(f"{launcher}{command}" for launcher in LAUNCHERS)
    return paragraph(usage=usage, description=f"{routine.summary}\n\n{RANKS}")


def needs_of(backend: Backend) -> str:
    """'needs a CUDA GPU, flashinfer installed', or 'runs anywhere'."""
    return f"needs {', '.join(r.text for r in backend.requires)}" if backend.requires else "runs anywhere"


def paragraph(usage: str, description: str) -> str:
    return _parser(usage, description).format_help()


def flag_section(title: str, specs: Iterable[FlagSpec], description: str = "") -> str:
    parser = _parser(argparse.SUPPRESS, None)
    group = parser.add_argument_group(title, description or None)
    for spec in specs:
        text = help_of(spec).replace("%", "%%")
        spellings = (*spec.options, *spec.negations)
        if spec.type is bool or spec.counted:
            group.add_argument(*spellings, dest=spec.name, action="store_true", help=text)
        else:
            nargs = "+" if spec.many else None
            group.add_argument(*spellings, dest=spec.name, nargs=nargs, metavar=metavar_of(spec), help=text)
    return parser.format_help()


def _parser(usage: str, description: str | None) -> argparse.ArgumentParser:
    from rich_argparse import RawDescriptionRichHelpFormatter

    class Formatter(RawDescriptionRichHelpFormatter):
        group_name_formatter = str
        text_markup = False  # brackets are the reader's

    return argparse.ArgumentParser(usage=usage, description=description, add_help=False, formatter_class=Formatter)


def metavar_of(spec: FlagSpec) -> str:
    """What stands for the value."""
    if spec.choices:
        return "{" + ",".join(str(choice) for choice in spec.choices) + "}"
    return spec.metavar or {"int": "N", "float": "X", "str": "TEXT", "DType": "DTYPE"}[spec.type.__name__]


def help_of(spec: FlagSpec) -> str:
    """The help text with the default, or that there is none."""
    if spec.required:
        return f"{spec.help} Required."
    if spec.default in (None, "", ()) or spec.counted or spec.default is False:
        return spec.help
    default = " ".join(map(str, spec.default)) if spec.many else spec.default
    return f"{spec.help} Default: {default}."
