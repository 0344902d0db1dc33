"""What the backends of the quantisers need, and how FlashInfer names layouts."""

from __future__ import annotations

import math
from typing import Any

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.requirement import Requirement, capability, case_rule, package
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.ours import triton_installed
from flashinfer_perf.routines.quantization.flags import QuantizationFlags

CUDA = "cuda"
CUTE_DSL = "cute-dsl"
DOCUMENTED = "10.0 10.3"
"""Where the documented matrix lists ``cuda``; it does not know ``cute-dsl`` here."""

BLACKWELL = capability(10, 11, 12)
WRITES_NOTHING = (
    "before compute capability 10.0 FlashInfer's quantizers launch and write nothing, and this GPU has {found}; "
    "use --backends torch"
)


def _unmet_blackwell(machine: Machine, flags: Any) -> str | None:
    found = machine.compute_capability
    if found is not None and found < (10, 0):
        return WRITES_NOTHING.format(found=machine.compute_capability_text)
    return BLACKWELL.unmet(machine, flags)


def elements(case: QuantizationFlags) -> int:
    """Of the input."""
    return math.prod((case.batch_size or 1, case.m, case.k))


writes_something = Requirement(BLACKWELL.text, _unmet_blackwell, on_capability=True)
flashinfer_installed = package("flashinfer", extra="flashinfer")
NEEDS_CUDA: tuple[Requirement, ...] = (writes_something, flashinfer_installed)
NEEDS_CUTE_DSL: tuple[Requirement, ...] = (
    capability(minimum="10.0"),  # the library's own statement, and the instruction that converts to e2m1
    flashinfer_installed,
    package("cutlass", extra="flashinfer"),
    case_rule(
        "fewer than 2^31 elements",
        lambda case: elements(case) < 1 << 31,
        "FlashInfer's CuTe-DSL quantizers count elements in 32 bits with a sign, and the input has 2^31 or more; "
        "use --backends cuda",
    ),
)

NEEDS_TRITON: tuple[Requirement, ...] = (capability(minimum="8.0"), triton_installed)


def sf_layout(case: QuantizationFlags) -> Any:
    """The library's name of a layout of scales: ``SfLayout.layout_128x4``, ``layout_8x4`` or ``layout_linear``."""
    return getattr(flashinfer.SfLayout, f"layout_{case.sf_layout}")
