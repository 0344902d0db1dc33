"""The generated parts of ``benchmarks/README.md``: routines, flags, support matrix, legend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

from flashinfer_perf.core.flags import FlagSpec, shown, specs_of
from flashinfer_perf.core.options import Options
from flashinfer_perf.core.routine import Routine
from flashinfer_perf.report.legend import legend
from flashinfer_perf.report.markdown import table
from flashinfer_perf.report.support import CAPABILITIES, differences, runs_on


def sections(routines: Mapping[str, Routine]) -> dict[str, str]:
    """Markdown by section name."""
    return {
        "routines": _routines(routines),
        "general-flags": flag_table(specs_of(Options).values()),
        "family-flags": _family_flags(routines),
        "support-matrix": _matrix(routines),
        "differences": _differences(routines),
        "legend": legend(backend for routine in routines.values() for backend in routine.backends.values()),
    }


def flag_table(specs: Iterable[FlagSpec]) -> str:
    """Spelling, default and description of each flag."""
    return table(("Flag", "Default", "Description"), [(_spelling(spec), _default(spec), _text(spec)) for spec in specs])


def _routines(routines: Mapping[str, Routine]) -> str:
    lines = []
    for family, members in groupby(routines.values(), key=lambda routine: routine.family):
        lines.append(f"- {family}:")
        lines += [f"    - `{routine.name}` - {routine.summary}" for routine in members]
    return "\n".join(lines)


def _family_flags(routines: Mapping[str, Routine]) -> str:
    parts = []
    for family, members in groupby(routines.values(), key=lambda routine: routine.family):
        readers = list(members)
        specs = specs_of(readers[0].flags).values()
        rows = [(_spelling(spec), _default(spec), _text(spec), _read_by(spec, readers)) for spec in specs]
        parts.append(f"### {family} flags\n\n{table(('Flag', 'Default', 'Description', 'Read by'), rows)}")
    return "\n\n".join(parts)


def _read_by(spec: FlagSpec, routines: list[Routine]) -> str:
    """'all', 'none yet', or the routines; each with its own default where that differs."""
    readers = [routine for routine in routines if spec.name in routine.specs]
    own = {routine.name: routine.specs[spec.name] for routine in readers}
    narrowed = [f"`{name}` ({_default(mine)})" for name, mine in own.items() if mine.default != spec.default]
    if len(readers) == len(routines):
        return ", ".join(["all", *narrowed])
    return ", ".join(f"`{routine.name}`" for routine in readers) or "none yet"


def _matrix(routines: Mapping[str, Routine]) -> str:
    columns = (*CAPABILITIES, "CPU")
    rows = []
    for routine in routines.values():
        cells = (", ".join(b.name for b in routine.backends.values() if runs_on(b, column)) for column in columns)
        rows.append((f"**{routine.name}**", *cells))
    return table(("Routine", *columns), rows)


def _differences(routines: Mapping[str, Routine]) -> str:
    rows = []
    for (routine, backend, runs), cells in groupby(
        differences(routines), key=lambda found: (found.routine, found.backend, found.runs)
    ):
        where = ", ".join(cell.capability for cell in cells)
        rows.append((f"`{routine}`", backend, where, "runs" if runs else "does not run"))
    return table(("Routine", "Backend", "Compute capability", "Here"), rows) if rows else "None."


def _spelling(spec: FlagSpec) -> str:
    return ", ".join(f"`{option}`" for option in (*spec.options, *spec.negations))


def _default(spec: FlagSpec) -> str:
    if spec.required:
        return "required"
    if spec.default in (None, "", ()):
        return ""
    return f"`{shown(spec.default)}`"


def _text(spec: FlagSpec) -> str:
    choices = f" One of {', '.join(f'`{choice}`' for choice in spec.choices)}." if spec.choices else ""
    return spec.help + choices
