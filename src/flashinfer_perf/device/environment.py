"""What the numbers were measured with: hardware and software, for every record."""

from __future__ import annotations

import functools
import platform
from typing import Any

import flashinfer_perf
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.requirement import installed_version
from flashinfer_perf.lazy import torch


@functools.cache
def environment_of(machine: Machine) -> dict[str, Any]:
    """Names and versions; empty texts for what a machine does not have."""
    return {
        "gpu": machine.name if machine.is_cuda else "",
        "compute_capability": machine.compute_capability_text,
        "driver_version": _driver_version() if machine.is_cuda else "",
        "cuda_version": torch.version.cuda or "",
        "torch_version": torch.__version__,
        "flashinfer_version": flashinfer_version(),
        "flashinfer_perf_version": flashinfer_perf.__version__,
        "python_version": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "device": machine.device,
    }


def flashinfer_version() -> str:
    """The installed version of FlashInfer, or 'not installed'."""
    return installed_version("flashinfer-python")


def _driver_version() -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # no such package, or no driver: ImportError and pynvml.NVMLError
        return ""


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            return next(names, platform.processor())
    except OSError:
        return platform.processor()
