"""What the backends ``triton`` need: kernels of this project, in ``flashinfer_perf.kernels``."""

from __future__ import annotations

from typing import Any

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.requirement import Requirement, installed_version, is_installed

OLDEST = (3, 6)
"""Triton that the kernels were written for and measured with; PyTorch 2.10 for CUDA brings it."""


def _unmet_triton(machine: Machine, flags: Any) -> str | None:
    if not is_installed("triton"):
        return "triton is not installed; PyTorch for CUDA brings it on Linux"
    found = installed_version("triton")
    if found[0].isdigit() and tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        return f"it needs triton {OLDEST[0]}.{OLDEST[1]} or newer, and {found} is installed"
    return None  # builds by other names have a version that is not looked up


triton_installed = Requirement(f"triton {OLDEST[0]}.{OLDEST[1]} or newer installed", _unmet_triton, on_package=True)
