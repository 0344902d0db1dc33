"""Routines, a folder per family. Importing this package imports none of them; ``all_routines`` does."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points

from flashinfer_perf.core.routine import Routine, declared_routines, declared_whole

ENTRY_POINTS = "flashinfer_perf.routines"


def all_routines() -> Mapping[str, Routine]:
    """Every routine that has a backend, by name: those of this package and those of installed plug-ins."""
    _import_own()
    _import_plugins()
    return {name: declared for name, declared in declared_routines().items() if declared.backends}


@functools.cache
def _import_own() -> None:
    for family in pkgutil.iter_modules(__path__, __name__ + "."):
        if family.ispkg:
            package = importlib.import_module(family.name)
            for module in pkgutil.iter_modules(package.__path__, family.name + "."):
                importlib.import_module(module.name)


@functools.cache
def _import_plugins() -> None:
    """A plug-in that cannot be imported costs a warning, not the run."""
    for plugin in entry_points(group=ENTRY_POINTS):
        try:
            with declared_whole():
                plugin.load()
        except (Exception, SystemExit) as error:  # it is somebody else's code
            print(f"[WARNING] plug-in {plugin.name} ({plugin.value}) is left out: {error}", file=sys.stderr)
