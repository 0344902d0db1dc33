"""Kernels of known duration, to test clocks with: nothing at all, a wait that knows how long it took, a copy."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer

COPY_BLOCK = 4096


@triton.jit
def _nothing(pointer):
    pass


@triton.jit
def _wait(stamps, nanoseconds):
    start = globaltimer()
    now = start
    while now - start < nanoseconds:
        now = globaltimer()
    tl.store(stamps, start)
    tl.store(stamps + 1, now)


@triton.jit
def _copy(source, target, count, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    tl.store(target + offsets, tl.load(source + offsets, mask=inside), mask=inside)


def nothing(scratch: torch.Tensor) -> None:
    """A kernel without instructions."""
    _nothing[(1,)](scratch)


def wait(stamps: torch.Tensor, microseconds: float) -> None:
    """Watches the device's nanosecond clock for that long; writes first and last reading to stamps, (2,) int64."""
    _wait[(1,)](stamps, int(microseconds * 1000), num_warps=1)


def copy(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copies a flat tensor of fp32 by loads and stores: a kernel in a graph, too, where ``copy_`` becomes a memcpy."""
    count = source.numel()
    _copy[(triton.cdiv(count, COPY_BLOCK),)](source, target, count, BLOCK=COPY_BLOCK, num_warps=8)
