"""Which backend runs on which GPU, derived from the backends' requirements and compared with the documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.routine import Backend, Routine

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0")
"""Columns of the documented matrix."""


@dataclass(frozen=True)
class Difference:
    """A cell in which the requirements and the documented matrix disagree."""

    routine: str
    backend: str
    capability: str
    runs: bool
    """What the requirements say."""


def machine_of(capability: str) -> Machine:
    """A GPU of that compute capability; 'CPU' for none."""
    if capability == "CPU":
        return Machine("cpu", "cpu")
    major, _, minor = capability.partition(".")
    return Machine("cuda:0", f"compute capability {capability}", (int(major), int(minor)))


def runs_on(backend: Backend, capability: str) -> bool:
    """Whether the machine meets every requirement, with all optional packages installed."""
    machine = machine_of(capability)
    return all(need.on_package or need.unmet(machine, None) is None for need in backend.requires)


def differences(routines: Mapping[str, Routine]) -> Iterator[Difference]:
    """Every cell that differs from the documents, for the backends that they list at all."""
    for routine in routines.values():
        for backend in routine.backends.values():
            for capability in CAPABILITIES if backend.documented else ():
                runs = runs_on(backend, capability)
                if runs != (capability in backend.documented):
                    yield Difference(routine.name, backend.name, capability, runs)
