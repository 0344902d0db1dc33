"""Heavy packages, imported at first use, so that parsing, ``--help`` and ``--plan`` cost milliseconds.

Routines are declared in the files that implement them; those files must be importable without torch. They write
``from flashinfer_perf.lazy import torch`` and use it inside functions only.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__all__ = ["LazyModule", "flashinfer", "numpy", "torch"]


class LazyModule:
    """Stands for a module and imports it when an attribute is first read; parts that it does not import itself, too."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        module = importlib.import_module(self._name)
        part = f"{self._name}.{attribute}"
        if not hasattr(module, attribute) and hasattr(module, "__path__") and importlib.util.find_spec(part):
            importlib.import_module(part)
        value = getattr(module, attribute)
        setattr(self, attribute, value)
        return value

    def __repr__(self) -> str:
        return f"<lazy module {self._name!r}>"


if TYPE_CHECKING:
    import flashinfer
    import numpy
    import torch
else:
    torch = LazyModule("torch")
    numpy = LazyModule("numpy")
    flashinfer = LazyModule("flashinfer")
