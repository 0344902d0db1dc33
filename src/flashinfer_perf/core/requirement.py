"""What a backend needs, as data: each requirement can say what it is and why it is not met."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flashinfer_perf.core.listing import listed
from flashinfer_perf.core.machine import Machine


@dataclass(frozen=True)
class Requirement:
    """One need of a backend.

    ``unmet(machine, flags)`` gives the reason in one line, or None. ``flags`` is None when only the machine is asked
    about (``--list``); a requirement about a case is met then.
    """

    text: str
    unmet: Callable[[Machine, Any], str | None]
    on_capability: bool = False
    """About the compute capability: the documents have a line of their own for that."""
    on_package: bool = False
    """About software that could be installed."""


def package(module: str, *, extra: str) -> Requirement:
    """An optional package, named with the extra that installs it."""

    def unmet(machine: Machine, flags: Any) -> str | None:
        if is_installed(module):
            return None
        return f"{module} is not installed; install it with: pip install 'flashinfer-perf[{extra}]'"

    return Requirement(f"{module} installed", unmet, on_package=True)


def _unmet_cpu(machine: Machine, flags: Any) -> str | None:
    return (
        f"it needs tensors in host memory, and this run is on {machine.device!r}; use --device cpu"
        if machine.is_cuda
        else None
    )


host_memory = Requirement("--device cpu", _unmet_cpu)


def capability(*majors: int, minimum: str = "0.0") -> Requirement:
    """A CUDA GPU of at least this compute capability and, if named, one of these generations (major versions)."""
    least = tuple(int(part) for part in minimum.split("."))
    kinds = listed([f"{major}.x" for major in majors], "or")
    newer = f"{minimum} or newer" if least > (0, 0) else ""
    text = f"compute capability {', '.join(part for part in (kinds, newer) if part)}"

    def unmet(machine: Machine, flags: Any) -> str | None:
        found = machine.compute_capability
        if found is None:
            return f"it needs a CUDA GPU of {text}, and this run is on {machine.device!r}"
        if found >= least and (not majors or found[0] in majors):
            return None
        return f"it needs {text}, and this GPU has {machine.compute_capability_text}"

    return Requirement(f"a CUDA GPU of {text}", unmet, on_capability=True)


def capability_in(capabilities: str) -> Requirement:
    """A CUDA GPU of one of these compute capabilities, '9.0 10.0'; for libraries that list what they support."""
    known = capabilities.split()
    text = f"compute capability {listed(known, 'or')}"

    def unmet(machine: Machine, flags: Any) -> str | None:
        if machine.compute_capability is None:
            return f"it needs a CUDA GPU of {text}, and this run is on {machine.device!r}"
        if machine.compute_capability_text in known:
            return None
        return f"it needs {text}, and this GPU has {machine.compute_capability_text}"

    return Requirement(f"a CUDA GPU of {text}", unmet, on_capability=True)


def case_rule(text: str, met: Callable[[Any], bool], reason: str = "") -> Requirement:
    """A rule about the case's flags; ``reason`` is what to say when it is broken, by default the rule itself."""

    def unmet(machine: Machine, flags: Any) -> str | None:
        return None if flags is None or met(flags) else reason or f"it needs {text}"

    return Requirement(text, unmet)


def on_generations(majors: tuple[int, ...], rule: Requirement) -> Requirement:
    """A rule that holds on GPUs of these generations (major versions) only."""

    def unmet(machine: Machine, flags: Any) -> str | None:
        found = machine.compute_capability
        return rule.unmet(machine, flags) if found is not None and found[0] in majors else None

    where = listed([f"{major}.x" for major in majors], "and")
    return Requirement(f"on compute capability {where}: {rule.text}", unmet)


@functools.cache
def is_installed(module: str) -> bool:
    """Whether it can be imported, found out without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def installed_version(distribution: str) -> str:
    """Its version, or 'not installed'."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
