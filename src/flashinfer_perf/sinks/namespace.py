"""The line ``[INFO] args = Namespace(…)``: upstream's attributes in its order, then ours, all with what took effect."""

from __future__ import annotations

from typing import Any

from flashinfer_perf.core.case import Case
from flashinfer_perf.core.flags import Since, shown, specs_of
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.options import Options

LEFT_OUT = ("help", "version", "list", "plan")
"""Options of runs that never come to a case."""


def namespace_line(case: Case, machine: Machine, backends: tuple[str, ...], run: Options | None = None) -> str:
    """``args = Namespace(routine='bmm_fp8', …)``, general options first, then the family's flags.

    Args:
        run: the command line's own options, in which a case of a testlist has no say (``--output_path``).
    """
    options, flags = specs_of(Options), specs_of(type(case.flags))
    upstream = [name for name, spec in options.items() if _is_upstreams(name, spec.since)]
    ours = [name for name in options if name not in upstream and name not in LEFT_OUT]
    values = {
        name: getattr(run if run is not None and spec.per_process else case.options, name)
        for name, spec in options.items()
    } | _effective(case, machine)
    family = {name: getattr(case.flags, name) for name in flags}
    negated = {off[2:]: not family[name] for name, spec in flags.items() for off in spec.negations}
    family |= {"backends": backends}
    ordered = {name: values[name] for name in upstream} | _with_negated(family, flags, negated)
    ordered |= {name: values[name] for name in ours}
    return f"args = Namespace({', '.join(f'{name}={shown(value)!r}' for name, value in ordered.items())})"


def _is_upstreams(name: str, since: Since) -> bool:
    return since is not Since.OURS and name not in (*LEFT_OUT, "testlist")


def _effective(case: Case, machine: Machine) -> dict[str, Any]:
    """Where what takes effect is not what was typed."""
    return {
        "repro_command": case.repro_command if case.options.generate_repro_command else case.options.repro_command,
        "use_cupti": False if not machine.is_cuda else not case.options.use_cuda_events,
        "cache": case.options.cache or ("cold" if machine.is_cuda else "warm"),
        "device": machine.device,
    }


def _with_negated(family: dict[str, Any], flags: Any, negated: dict[str, bool]) -> dict[str, Any]:
    """Upstream lists a flag and its negation as two attributes, one behind the other."""
    result: dict[str, Any] = {}
    for name, value in family.items():
        result[name] = value
        for off in flags[name].negations:
            result[off[2:]] = negated[off[2:]]
    return result
