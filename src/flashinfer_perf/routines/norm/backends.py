"""FlashInfer's two implementations of its norms, CUDA and CuTe DSL, and how to get the one that was asked for.

The public functions are the same for both. Which kernels run decides a global of the module ``flashinfer.norm``, and
where the DSL is missing or does not know the GPU, the library takes CUDA without a word.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.core.requirement import Requirement, capability, case_rule, installed_version, package
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.norm.work import elements

CUDA = "cuda"
CUTE_DSL = "cute-dsl"
SWITCH = "_USE_CUDA_NORM"
"""The global: whether the CUDA kernels run. Read at every call."""
DISPATCHER = "_use_cuda_norm"
"""The library's function that says, of a device, whether the CUDA kernels run."""
CUTE_DSL_KERNEL = "rmsnorm_cute"
"""One of the names that the module imports from the DSL's kernels, when it can."""

flashinfer_installed = package("flashinfer", extra="flashinfer")
cute_dsl_installed = package("cutlass", extra="flashinfer")
fits_32_bits = case_rule(
    "fewer than 2^32 elements",
    lambda case: elements(case) < 1 << 32,
    "FlashInfer's CUDA norms count elements in 32 bits, and the input has 2^32 or more; use --backends cute-dsl",
)

NEEDS_CUDA: tuple[Requirement, ...] = (capability(minimum="7.5"), flashinfer_installed, fits_32_bits)
NEEDS_CUTE_DSL: tuple[Requirement, ...] = (capability(minimum="8.0"), flashinfer_installed, cute_dsl_installed)
EVERYWHERE = "7.5 8.0 8.6 8.9 9.0 10.0 10.3 12.0"
"""Where the documented matrix lists ``cuda``."""


@contextlib.contextmanager
def implementation(name: str) -> Iterator[None]:
    """FlashInfer's norms run this implementation inside, and afterwards the one that they ran before.

    Raises:
        Unsupported: when the installed FlashInfer has not got it, or no such choice.
    """
    module: Any = flashinfer.norm
    if not (hasattr(module, SWITCH) and hasattr(module, DISPATCHER)):
        raise Unsupported(
            f"flashinfer-python {installed_version('flashinfer-python')} has no flashinfer.norm.{SWITCH}, by which "
            f"0.7.2 chooses between its CUDA and CuTe-DSL norms: it cannot be told which one would run"
        )
    if name == CUTE_DSL and not hasattr(module, CUTE_DSL_KERNEL):
        raise Unsupported(
            "FlashInfer left its CuTe-DSL norms out when it was imported: nvidia-cutlass-dsl does not fit it, or "
            "FLASHINFER_USE_CUDA_NORM=1 is set (unset it and start again)"
        )
    before = getattr(module, SWITCH)
    setattr(module, SWITCH, name == CUDA)
    try:
        yield
    finally:
        setattr(module, SWITCH, before)


cuda_kernels = partial(implementation, CUDA)
cute_dsl_kernels = partial(implementation, CUTE_DSL)


def resolved(wanted: str, device: torch.device) -> str:
    """The implementation that FlashInfer takes for a device; asked inside ``implementation(wanted)``.

    Raises:
        Unsupported: when it is another one than wanted.
    """
    if device.type != "cuda":  # a test with a stand-in for the library
        return wanted
    found = CUDA if getattr(flashinfer.norm, DISPATCHER)(device) else CUTE_DSL
    if found != wanted:
        major, minor = torch.cuda.get_device_capability(device)
        raise Unsupported(
            f"FlashInfer would run its {found} kernels in place of {wanted}: nvidia-cutlass-dsl "
            f"{installed_version('nvidia-cutlass-dsl')} does not compile for compute capability {major}.{minor}"
        )
    return wanted


def require_row_in_shared_memory(x: torch.Tensor) -> None:
    """FlashInfer's fused CUDA norms keep a row of sums there, in fp32, beside a number for each of up to 32 warps.

    Raises:
        Unsupported: when the device has less.
    """
    if x.device.type != "cuda":
        return
    needed = 4 * (x.shape[-1] + 32)
    available = torch.cuda.get_device_properties(x.device).shared_memory_per_block_optin
    if needed > available:
        raise Unsupported(
            f"FlashInfer's fused CUDA norms keep a row in shared memory: hidden_size {x.shape[-1]} takes {needed} "
            f"bytes, and a block has {available} here; use --backends cute-dsl"
        )
