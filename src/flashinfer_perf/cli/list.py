"""``--list``: every routine, which of its backends run here, and why the others do not."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.core.exit_status import FAILURE, SUCCESS
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.routine import Routine
from flashinfer_perf.device.machine import find_machine


def print_list(routines: Mapping[str, Routine], device: str, format: str) -> int:
    """Asks the machine alone; what a case's flags rule out is said when the case runs. 1 when there is none such."""
    try:
        machine = find_machine(device)
    except Unsupported as error:
        print(f"[ERROR] {error}", file=sys.stderr)
        return FAILURE
    if format == "json":
        print(json.dumps([entry(routine, machine) for routine in routines.values()], indent=2))
        return SUCCESS
    where = f"{machine.name} ({machine.compute_capability_text})" if machine.is_cuda else "the CPU"
    print(f"Routines on {where}; + runs here, - does not:")
    family = ""
    for routine in routines.values():
        if routine.family != family:
            family = routine.family
            print(f"\n{family}")
        print(f"  {routine.name}: {routine.summary}")
        for name, reason in entry(routine, machine)["backends"].items():
            print(f"    + {name}" if not reason else f"    - {name}: {reason}")
    return SUCCESS


def entry(routine: Routine, machine: Machine) -> dict[str, Any]:
    """A routine with each backend's reason not to run, '' for those that do."""
    reasons = {backend.name: (backend.unmet(machine) or (None, ""))[1] for backend in routine.backends.values()}
    return {"family": routine.family, "routine": routine.name, "summary": routine.summary, "backends": reasons}
