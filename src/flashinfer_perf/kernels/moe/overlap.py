"""Launches that begin while the kernel before them ends: programmatic dependent launch, since Hopper.

Every kernel of a mixture waits before it reads anything, so that whatever came before it in the stream has ended, and
all that was before that.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

SINCE = (9, 0)
"""Compute capability that has it."""
NONE = {"OVERLAPS": False, "launch_pdl": False}
"""Options of a launch that begins when the one before it has ended."""


def options(capability: tuple[int, int]) -> dict[str, bool]:
    """A launch's, on a GPU of that compute capability."""
    return {"OVERLAPS": True, "launch_pdl": True} if capability >= SINCE else NONE


@functools.cache
def options_on(device: torch.device) -> dict[str, bool]:
    """The same on a device, which is asked once: calls need the answer each time."""
    return options(torch.cuda.get_device_capability(device)) if device.type == "cuda" else NONE


@triton.jit
def await_previous(OVERLAPS: tl.constexpr):
    """Lets the next kernel's programs come as soon as there is room, and waits for the kernel before this one."""
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
