"""Which of a routine's backends a case runs."""

from __future__ import annotations

from dataclasses import dataclass

from flashinfer_perf.core.case import Case
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.requirement import Requirement
from flashinfer_perf.core.routine import Backend


@dataclass(frozen=True)
class Refused:
    """A backend that cannot run here, with the requirement that is not met and the reason."""

    backend: Backend
    requirement: Requirement
    reason: str


@dataclass(frozen=True)
class Selection:
    """What to run and what not.

    Attributes:
        runnable: in the order to run. When ``by_default``, alternatives of which the first that works is meant.
        refused: the ones asked for that cannot run; by default, the ones preferred over those that can.
        by_default: nothing was typed.
    """

    runnable: tuple[Backend, ...]
    refused: tuple[Refused, ...]
    by_default: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The backends that are meant to run."""
        names = tuple(backend.name for backend in self.runnable)
        return names[:1] if self.by_default else names


def select(case: Case, machine: Machine) -> Selection:
    """The backends typed, or without any the routine's own in their order of preference."""
    backends = case.routine.backends
    asked = [backends[name] for name in case.backends] or list(backends.values())
    runnable, refused = [], []
    for backend in asked:
        unmet = backend.unmet(machine, case.flags)
        if unmet is None:
            runnable.append(backend)
        else:
            refused.append(Refused(backend, *unmet))
    return Selection(tuple(runnable), tuple(refused), by_default=not case.backends)


def one_that_works(case: Case, machine: Machine) -> str:
    """The name of another backend that could run this case here; '' when none could, or when all were tried."""
    tried = case.backends or tuple(case.routine.backends)
    others = (backend for name, backend in case.routine.backends.items() if name not in tried)
    return next((backend.name for backend in others if backend.unmet(machine, case.flags) is None), "")
